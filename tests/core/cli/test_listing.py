"""`uvr plugins` and `uvr adapters`."""

from __future__ import annotations

import json

from commands import ran, registered


def test_plugins_json():
    data = json.loads(ran("plugins", "--json").stdout)
    origins = {plugin["name"]: plugin for plugin in data["plugins"]}
    assert origins["builtin-adapters"]["status"] == "ok"
    assert origins["builtin-adapters"]["distribution"] == "uvr-core"
    assert origins["builtin-plugins"]["hooks"] == ["uvr_baselines", "uvr_detectors", "uvr_judges", "uvr_policies"]
    assert data["names"]["command"] == {"analyze": "analysis", "demo": "zoo", "eval": "evaluation", "zoo": "zoo"}
    assert "uvr" in data["names"]["policy"]


def test_plugins_and_adapters_print_tables():
    assert "builtin-adapters" in ran("plugins").stdout
    assert "longcat-image" in ran("adapters").stdout


def test_adapters_json():
    rows = json.loads(ran("adapters", "--json").stdout)["adapters"]
    (flux,) = [row for row in rows if row["name"] == "flux"]
    assert flux["model"] == "FluxTransformer2DModel"
    assert flux["plugin"] == "builtin-adapters"


def test_two_plugins_that_claim_one_name_are_reported():
    with registered(uvr_policies={"uvr": "elsewhere:Uvr"}):
        result = ran("plugins", "--json", code=1)
    assert "'uvr'" in json.loads(result.stdout)["clashes"][0]
    assert len(result.stderr.splitlines()) == 1
