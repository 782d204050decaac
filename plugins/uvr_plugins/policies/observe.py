"""observe: change nothing, report."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located


@attrs.frozen
class Observe:
    """Change nothing; the report says what was located."""

    name: str = "observe"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return None
