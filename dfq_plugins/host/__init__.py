"""The plugin host: loads plugins, looks them up by name, and checks their options. Imports no torch."""
