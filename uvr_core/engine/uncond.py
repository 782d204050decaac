"""The text of the unconditional part, for edits that put it in the place of the prompt's."""

from __future__ import annotations

import attrs
import torch

from ..errors import UVRError
from ..intercept.calls import JointCall, with_heads


@attrs.frozen(eq=False)
class Text:
    """The text tokens of one joint call: key and value (B, H, T, D), and what its mask says of them.

    `mask` is (B|1, H|1, N|1, T|1), its rows are output patches, or None.
    """

    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None


class UncondText:
    """What the last unconditional part showed at each tap.

    Args:
        guidance: see Adapter.
    """

    def __init__(self, guidance: str):
        self._two_pass = guidance == "two_pass"
        self._texts: dict[str, Text] = {}

    def remember(self, call: JointCall) -> None:
        """Copy the call's text, so that nothing holds the rest."""
        text, mask = call.keys.text, call.mask
        if mask is not None:
            mask = mask if mask.shape[3] == 1 else mask[..., text]
            mask = (mask if mask.shape[2] == 1 else mask[:, :, call.queries.output]).clone()
        key, value = (tensor[:, :, text].clone() for tensor in (call.grouped_key, call.grouped_value))
        self._texts[call.tap] = Text(key, value, mask)

    def at(self, call: JointCall) -> Text | None:
        """The text for a call's rows; None while an unconditional part may still come: in the first step.

        Raises:
            UVRError: there was none, or it holds another number of images.
        """
        batch, heads = call.query.shape[:2]
        text = self._texts.get(call.tap)
        if text is None and self._two_pass and call.forward.step == 0:
            return None
        if text is None:
            raise UVRError(
                f"a policy needs the text of the unconditional pass, and there was none before {call.tap} at step "
                f"{call.forward.step}: turn guidance on (a negative prompt, and true_cfg_scale or guidance_scale above "
                "1), attach to the pipeline and not to its transformer, or take a policy that needs none ('block' cuts "
                "the text)"
            )
        if text.key.shape[0] not in (1, batch):
            raise UVRError(
                f"the unconditional pass holds {text.key.shape[0]} samples and the conditional one {batch}; expected "
                "as many: give every prompt a negative prompt"
            )
        key, value = (with_heads(x.expand(batch, -1, -1, -1), heads) for x in (text.key, text.value))
        return attrs.evolve(text, key=key, value=value)
