"""A stock mixture of experts from a dense checkpoint: the counterpart of the dense form."""

from toolkit.cuts.upcycling.forms import FORMS, CopiesForm, Form, SharedForm
from toolkit.cuts.upcycling.upcycle import upcycle

__all__ = ["FORMS", "CopiesForm", "Form", "SharedForm", "upcycle"]
