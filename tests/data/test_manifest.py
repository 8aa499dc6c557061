"""The records of manifest.json: their JSON, and the errors for a file that is not one."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dfq_plugins.data.manifest import (
    MANIFEST_FILE,
    GeneratorRecord,
    Manifest,
    ShardRecord,
    read_manifest,
    shard_file,
    write_manifest,
)
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage.versions import library_versions
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make_manifest(**changes: object) -> Manifest:
    manifest = Manifest(
        state="complete",
        model_digest="ab" * 32,
        generator=GeneratorRecord("bns", "dfq-plugins", "0.1.0", {"iterations": 5, "weights": (1.0, 2.0)}),
        seed=7,
        input_spec=InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4),
        labels="conditional",
        num_samples=5,
        shards=(ShardRecord(0, 3, shard_file(0), "cd" * 32), ShardRecord(1, 2, shard_file(1), "ef" * 32)),
        versions={"python": "3.11.0"},
        divergence={"norm1": 0.25, "norm2": math.inf},
    )
    return replace(manifest, **changes)


def test_manifest_round_trip_keeps_every_field(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert found == replace(manifest, generator=replace(manifest.generator, options=found.generator.options))
    assert found.generator.options == {"iterations": 5, "weights": [1.0, 2.0]}
    assert found.settings.digest == manifest.settings.digest


def test_manifest_bytes_are_strict_json_and_independent_of_mapping_order(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = []
    for versions in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}):
        write_manifest(tmp_path, make_manifest(versions=versions, divergence={"z": 1.0, "b": math.nan}))
        written.append((tmp_path / MANIFEST_FILE).read_bytes())
    assert list(json.loads(written[0])["divergence"]) == ["z", "b"]  # layers keep the network's order
    assert written[0] == written[1]
    assert json.loads(written[0], parse_constant=refuse)["format_version"] == 2
    assert math.isnan(read_manifest(tmp_path).divergence["b"])


def test_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a data set: it has no manifest\.json\. Give the folder"):
        read_manifest(tmp_path / "nothing")


def test_unreadable_manifest_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(DataError, match=r"manifest\.json cannot be read \(Is a directory\)\. Give the folder"):
        read_manifest(tmp_path)


def break_shard_count(data: dict) -> None:
    data["num_samples"] = 6


def point_outside(data: dict) -> None:
    data["shards"][1]["file"] = "../secret.safetensors"


def drop_checksum(data: dict) -> None:
    data["shards"][0]["sha256"] = None


def break_seed(data: dict) -> None:
    data["seed"] = "seven"


def break_spec(data: dict) -> None:
    data["input_spec"]["shape"] = []


def drop_version(data: dict) -> None:
    del data["format_version"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (break_shard_count, "the shards hold 5 samples, not the 6 of num_samples"),
        (point_outside, "../secret.safetensors"),
        (drop_checksum, "shard-00000.safetensors has no checksum, although the set is complete"),
        (break_seed, "seed: Input should be a valid integer"),
        (break_spec, "input_spec.InputSpec: "),
        (drop_version, "it has no format_version"),
    ],
)
def test_invalid_manifest_names_what_is_wrong_and_the_next_step(
    tmp_path: Path, edit: Callable[[dict], None], reason: str
) -> None:
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / MANIFEST_FILE
    data = json.loads(path.read_bytes())
    edit(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        read_manifest(tmp_path)
    assert "manifest.json is not a valid manifest: " in str(caught.value)
    assert "Restore it from a copy, or delete the folder and synthesize again." in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"format_version": 1,', b"\xff\xfe", b"[1]"])
def test_a_file_that_is_no_json_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(DataError, match="is not a valid manifest"):
        read_manifest(tmp_path)


def test_future_format_version_asks_for_a_newer_package(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"format_version": 99, "whatever": true}')
    with pytest.raises(
        DataError, match=r"has format version 99, .* reads versions up to 2\. Install a newer dfq-plugins\."
    ):
        read_manifest(tmp_path)


def test_options_without_json_form_are_refused(tmp_path: Path) -> None:
    generator = GeneratorRecord("bns", "dfq-plugins", "0.1.0", {"network": object()})
    with pytest.raises(UsageError, match=r"Settings are stored as JSON, so every value must have a JSON form"):
        write_manifest(tmp_path, make_manifest(generator=generator))


def test_settings_digest_ignores_how_numbers_are_written_but_not_their_values() -> None:
    settings = make_manifest().settings
    whole = replace(settings, input_spec=replace(settings.input_spec, value_range=(0, 1)))
    other = replace(settings, input_spec=replace(settings.input_spec, value_range=(0, 2)))
    assert whole.digest == settings.digest
    assert other.digest != settings.digest


def test_shard_seeds_are_63_bits_and_differ_between_shards_seeds_and_models() -> None:
    settings = make_manifest().settings
    seeds = {settings.shard_seed(index) for index in range(50)}
    seeds |= {replace(settings, seed=8).shard_seed(0), replace(settings, model_digest="00").shard_seed(0)}
    assert len(seeds) == 52
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**60


@pytest.mark.parametrize(("name", "value"), [("num_samples", 0), ("num_samples", -4), ("shard_size", 0)])
def test_plan_refuses_counts_that_are_not_positive(name: str, value: int) -> None:
    counts = {"num_samples": 4, "shard_size": 2, name: value}
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got {value}"):
        DatasetPlan("ab", GeneratorRecord("bns", "dfq-plugins", "0.1.0"), 0, InputSpec((3,)), **counts)


def test_plan_splits_the_samples_exactly_and_puts_new_shards_after_kept_ones() -> None:
    plan = DatasetPlan("ab", GeneratorRecord("bns", "dfq-plugins", "0.1.0"), 0, InputSpec((3,)), 10, 4)
    kept = (ShardRecord(0, 3, shard_file(0), "aa"),)
    assert [(shard.index, shard.num_samples) for shard in plan.manifest().shards] == [(0, 4), (1, 4), (2, 2)]
    assert plan.manifest(kept).shards == (*kept, ShardRecord(1, 4, shard_file(1)), ShardRecord(2, 3, shard_file(2)))


def test_versions_are_recorded_without_importing_the_libraries() -> None:
    versions = library_versions()
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"torch", "dfq-plugins", "safetensors"} <= set(versions)


def test_manifest_module_imports_neither_torch_nor_pydantic() -> None:
    script = "import sys, dfq_plugins.data.manifest; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
