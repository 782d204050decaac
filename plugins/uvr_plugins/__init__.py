"""Built-in detectors, policies, judges and baselines, registered through the "uvr" entry-point group like anyone's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_detectors() -> Mapping[str, object]:
    return {
        "anchor": "uvr_plugins.detectors.anchor:Anchor",
        "anchor-cosine": "uvr_plugins.detectors.anchor:AnchorCosine",
        "contrast": "uvr_plugins.detectors.contrast:Contrast",
        "concept-token": "uvr_plugins.detectors.concept_token:ConceptToken",
        "oracle": "uvr_plugins.detectors.oracle:Oracle",
    }


@hookimpl
def uvr_policies() -> Mapping[str, object]:
    return {
        "uvr": "uvr_plugins.policies.uvr:Uvr",
        "uvr-released": "uvr_plugins.policies.uvr_released:UvrReleased",
        "block": "uvr_plugins.policies.block:Block",
        "noise": "uvr_plugins.policies.noise:Noise",
        "selective": "uvr_plugins.policies.selective:Selective",
        "redirect": "uvr_plugins.policies.redirect:Redirect",
        "project": "uvr_plugins.policies.project:Project",
        "refuse": "uvr_plugins.policies.refuse:Refuse",
        "observe": "uvr_plugins.policies.observe:Observe",
    }


@hookimpl
def uvr_judges() -> Mapping[str, object]:
    return {
        "nudenet": "uvr_plugins.judges.nudenet:NudeNet",
        "opennsfw": "uvr_plugins.judges.opennsfw:OpenNSFW",
        "falconsai-nsfw": "uvr_plugins.judges.falconsai:FalconsaiNSFW",
        "shieldgemma2": "uvr_plugins.judges.shieldgemma:ShieldGemma2",
        "q16": "uvr_plugins.judges.q16:Q16",
        "vlm": "uvr_plugins.judges.vlm:Vlm",
        "clipseg": "uvr_plugins.judges.zero_shot:ClipSeg",
        "grounding-dino": "uvr_plugins.judges.zero_shot:GroundingDino",
        "sam2": "uvr_plugins.judges.zero_shot:Sam2",
    }


@hookimpl
def uvr_baselines() -> Mapping[str, object]:
    return {
        "blocklist": "uvr_plugins.baselines.prompts:Blocklist",
        "negative-prompt": "uvr_plugins.baselines.prompts:NegativePrompt",
        "sld": "uvr_plugins.baselines.sld:SafeLatentDiffusion",
        "sld-max": "uvr_plugins.baselines.sld:MAX",
        "concept-attention": "uvr_plugins.baselines.concept_attention:ConceptAttention",
        "uni-adavd": "uvr_plugins.baselines.adavd:UniAdaVD",
        "output-filter": "uvr_plugins.baselines.output_filter:OutputFilter",
    }


@hookimpl
def uvr_recipes() -> Mapping[str, object]:
    return {path.stem: str(path) for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}
