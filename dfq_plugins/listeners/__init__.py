"""Progress listeners: objects that are called with every `ProgressEvent` of a run."""

from dfq_plugins.host.broadcast import Broadcast

__all__ = ["Broadcast"]
