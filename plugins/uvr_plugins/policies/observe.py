"""observe: change nothing, report."""

from __future__ import annotations

from typing import ClassVar

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located


@attrs.frozen
class Observe:
    """Change nothing; the report says what was located."""

    name: str = "observe"
    acts: ClassVar[bool] = False

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return None
