"""block: a hard cut."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, row_classes

_SAME = (1.0, 1.0, 1.0, 1.0)


@attrs.frozen
class Block:
    """Hard cut: located rows (core and ring) receive nothing from text and reference tokens."""

    ring: int = 1
    margin: int = 0
    name: str = "block"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        cut = (0.0, 1.0, 1.0, 0.0)
        return FlowEdit(row_classes(located), (_SAME, cut, cut))
