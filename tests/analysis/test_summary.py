"""What analysis.json says."""

from __future__ import annotations

import json

import numpy as np
from flowing import scored

from uvr_analysis.summary import rounded, text, to_dict


def test_json_holds_what_was_measured_and_no_nan() -> None:
    masks = np.zeros((6, 3, 4), bool)
    masks[:, 0] = True
    flows = scored(np.tile(masks.reshape(6, 1, 12), (1, 5, 1)).astype(float), masks)
    data = json.loads(json.dumps(to_dict(flows)["localisation"], allow_nan=False))
    always = [1.0] * 5
    assert data == {"a": {"auroc": always, "low": always, "high": always, "within": always, "prior": 1.0, "images": 6}}
    shown = text({"model": "m", "pipeline": "P", **to_dict(flows)})
    assert shown.splitlines()[0] == "m: P, 6 images, 5 steps, 1 blocks, 0.0 s"
    assert "into located patches:" in shown
    assert "localisation at a: patch AUROC 1.00 at step 0, 1.00 at the last, 6 images" in shown


def test_six_digits() -> None:
    assert rounded(np.array([1 / 3, np.nan])) == [0.333333, None]
