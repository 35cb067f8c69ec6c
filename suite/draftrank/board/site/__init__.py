"""The leaderboard as static pages: complete without scripts, readable from `file://`, loading nothing from elsewhere.

Everything that comes from records is text to the templates: autoescape is on for all of them, and no link is built
from a record except to pages with safe names (`addresses`). Equal boards give equal bytes.
"""

from draftrank.board.site.render import Declarations, render_site

__all__ = ["Declarations", "render_site"]
