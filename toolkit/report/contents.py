"""The page's sections: each has an anchor, and the contents list those that are there."""

from markupsafe import Markup


class Contents:
    """Collects the headings of a page while it is rendered; `entries` are (anchor, title)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def heading(self, anchor: str, title: str) -> Markup:
        """An <h2> with an anchor that can be linked to. Raises ValueError for an anchor that is there already."""
        if anchor in dict(self.entries):
            raise ValueError(f"two sections of a page have the anchor {anchor!r}")
        self.entries.append((anchor, title))
        link = Markup('<a class="anchor" href="#{}" aria-label="Link to this section">#</a>').format(anchor)
        return Markup('<h2 id="{}">{} {}</h2>').format(anchor, title, link)
