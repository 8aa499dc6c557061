"""The one tracer: runs a network and writes what torch was asked to do as an `fx.GraphModule`."""
