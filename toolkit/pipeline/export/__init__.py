"""A run's model in the format of another program, written by that program's own tools, and what it answers then."""

from toolkit.pipeline.export.export import EXPORTS, export, read_export
from toolkit.pipeline.export.formats import GGUF_TYPES, format_of

__all__ = ["EXPORTS", "GGUF_TYPES", "export", "format_of", "read_export"]
