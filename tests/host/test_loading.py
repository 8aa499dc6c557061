"""Each row of the failure table, with distributions that really lie on disk."""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from dfq_plugins.errors import PluginError
from dfq_plugins.host import loading
from dfq_plugins.host.loading import BrokenPlugin, PluginSource, PluginWarning
from dfq_plugins.host.registry import Registry, attributed, attributed_iterator, build_registry, get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint
    from pathlib import Path

HEADER = """
from dfq_plugins import hookimpl
from dfq_plugins.types import CalibratorEntry, DataGenerator, GeneratorEntry, ProgressListenerEntry
"""

GOOD = (
    HEADER
    + """
@hookimpl
def dfq_generators():
    yield GeneratorEntry("{name}", "a generator", "{module}:make")

def make(options):
    return Made()

class Made(DataGenerator):
    def generate(self, model, spec, **rest):
        yield "a batch"
        raise RuntimeError("out of luck")
"""
)


ODD_OPTIONS = """
    from dataclasses import make_dataclass
    yield GeneratorEntry('gan', '', 'a:b', options=make_dataclass('Odd', [('x', 'Absent', 1)]))
"""


class Install(Protocol):
    def __call__(self, distribution: str, source: str, *, version: str = "0.2", entry_point: str = "gan") -> Path: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write distributions with metadata and one module each onto the path, and see no others."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    all_installed = loading.installed_entry_points

    def installed_here() -> list[EntryPoint]:
        return [found for found in all_installed() if found.dist and found.dist.locate_file("x") == tmp_path / "x"]

    monkeypatch.setattr(loading, "installed_entry_points", installed_here)

    def write(distribution: str, source: str, *, version: str = "0.2", entry_point: str = "gan") -> Path:
        module = distribution.replace("-", "_") + "_plugin"
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[dfq_plugins]\n{entry_point} = {module}\n")
        path = tmp_path / f"{module}.py"
        path.write_text(source.replace("{module}", module))
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.endswith("_plugin"):
            del sys.modules[name]


def good(name: str) -> str:
    return GOOD.replace("{name}", name)


def test_a_good_plugin_is_found_with_its_distribution_and_version(install: Install) -> None:
    install("dfq-gan", good("gan"))
    provided = build_registry().generators["gan"]
    assert (provided.distribution, provided.version, provided.state) == ("dfq-gan", "0.2", "ready")
    assert str(provided) == "generator 'gan' from dfq-gan 0.2"
    assert provided.install_line == ""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("def syntax error", "SyntaxError: "),
    ],
)
def test_an_entry_point_that_fails_to_import_is_listed_as_broken(install: Install, source: str, error: str) -> None:
    install("dfq-bad", source, version="1.5", entry_point="bad")
    install("dfq-gan", good("gan"))
    with pytest.warns(PluginWarning, match="Set aside the broken plugin 'bad' of dfq-bad 1.5: ") as caught:
        registry = build_registry()
    assert len(caught) == 1
    assert "gan" in registry.generators
    (broken,) = registry.broken
    assert (broken.entry_point, broken.distribution, broken.version) == ("bad", "dfq-bad", "1.5")
    assert broken.error.startswith(error)


def test_a_broken_plugin_is_warned_of_once_in_a_process(install: Install) -> None:
    install("dfq-bad", "import no_such_module")
    get_registry.cache_clear()
    try:
        with pytest.warns(PluginWarning) as caught:
            assert get_registry() is get_registry()
        assert len([warning for warning in caught if "dfq-bad" in str(warning.message)]) == 1
    finally:
        get_registry.cache_clear()


@pytest.mark.parametrize("value", ["1", "true"])
def test_strict_raises_for_a_broken_plugin(install: Install, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install("dfq-bad", "import no_such_module", entry_point="bad")
    monkeypatch.setenv("DFQ_STRICT_PLUGINS", value)
    message = "Broken plugin 'bad' of dfq-bad 0.2: ModuleNotFoundError: .*unset DFQ_STRICT_PLUGINS"
    with pytest.raises(PluginError, match=message) as caught:
        build_registry()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_is_off_for_an_empty_variable_or_zero(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install("dfq-bad", "import no_such_module")
    monkeypatch.setenv("DFQ_STRICT_PLUGINS", value)
    with pytest.warns(PluginWarning, match="dfq-bad"):
        assert build_registry().broken


def test_a_misspelt_hook_names_distribution_and_version(install: Install) -> None:
    install("dfq-gan", HEADER + "@hookimpl\ndef dfq_generatorz():\n    return []\n")
    message = "Plugin 'gan' of dfq-gan 0.2 has an invalid hook: unknown hook 'dfq_generatorz'.*dfq_generators"
    with pytest.raises(PluginError, match=message):
        build_registry()


def test_a_hook_with_an_unknown_argument_names_distribution_and_version(install: Install) -> None:
    install("dfq-gan", HEADER + "@hookimpl\ndef dfq_generators(model):\n    return []\n")
    with pytest.raises(PluginError, match=r"Plugin 'gan' of dfq-gan 0.2 has an invalid hook: .*'model'"):
        build_registry()


def test_a_plugin_without_hooks_is_broken(install: Install) -> None:
    install("dfq-gan", "def dfq_generators():\n    return []\n")
    with pytest.warns(PluginWarning, match="dfq_gan_plugin has no hooks. Decorate its functions"):
        assert build_registry().broken[0].distribution == "dfq-gan"


def test_two_providers_of_one_name_are_both_named(install: Install) -> None:
    install("dfq-gan", good("gan"))
    install("other-gan", good("gan"), version="3.1", entry_point="other")
    with pytest.raises(PluginError, match="Two plugins provide the generator 'gan': ") as caught:
        build_registry()
    assert "dfq-gan 0.2 (entry point 'gan')" in str(caught.value)
    assert "other-gan 3.1 (entry point 'other')" in str(caught.value)


def test_one_plugin_that_provides_a_name_twice_is_named(install: Install) -> None:
    source = HEADER + "@hookimpl\ndef dfq_generators():\n    return [GeneratorEntry('gan', '', 'a:b')] * 2\n"
    install("dfq-gan", source.replace("* 2", "+ [GeneratorEntry('gan', '', 'a:c')]"))
    with pytest.raises(PluginError, match=r"dfq-gan 0.2 .*and dfq-gan 0.2"):
        build_registry()


def test_equal_entry_point_names_in_two_distributions_are_both_loaded(install: Install) -> None:
    install("dfq-gan", good("gan"), entry_point="plugin")
    install("other-gan", good("other"), entry_point="plugin")
    assert {"gan", "other"} <= set(build_registry().generators)


def test_two_entry_points_of_one_module_are_both_named(install: Install, tmp_path: Path) -> None:
    install("dfq-gan", good("gan"))
    install("other-gan", good("other"), entry_point="other")
    (tmp_path / "other_gan-0.2.dist-info" / "entry_points.txt").write_text("[dfq_plugins]\nother = dfq_gan_plugin\n")
    message = r"Two entry points name the same plugin: dfq-gan 0.2 \(entry point 'gan'\) and other-gan 0.2"
    with pytest.raises(PluginError, match=message):
        build_registry()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("    yield GeneratorEntry('half', '', 'a:b')\n    raise OSError('disk gone')\n", "OSError: disk gone"),
        ("    raise OSError('disk gone')\n", "OSError: disk gone"),
        ("    return GeneratorEntry('single', '', 'a:b')\n", "TypeError: .*not iterable"),
        ("    return ['gan']\n", "TypeError: expected GeneratorEntry objects, got 'gan'"),
        ("    yield CalibratorEntry('gan', '', 'a:b')\n", "TypeError: expected GeneratorEntry objects, got Calibr"),
        ("    yield GeneratorEntry('two words', '', 'a:b')\n", "ValueError: a name must be one word, got 'two words'"),
        (
            "    yield GeneratorEntry('gan', '', 'a.b')\n",
            "ValueError: a factory must be 'package.module:Class', got",
        ),
        ("    yield GeneratorEntry('gan', '', 'a:b', requires='torch')\n", "TypeError: requires must be a tuple"),
        (
            "    yield GeneratorEntry('gan', '', 'a:b', options=dict)\n",
            "TypeError: options must be a dataclass, got <class 'd",
        ),
        (
            ODD_OPTIONS,
            "NameError: name 'Absent' is not defined",
        ),
    ],
)
def test_a_hook_that_fails_breaks_its_own_plugin_alone(install: Install, body: str, error: str) -> None:
    hook_for_listeners = (
        "@hookimpl\ndef dfq_progress_listeners():\n    yield ProgressListenerEntry('bad-listener', '', 'a:b')\n"
    )
    install("dfq-bad", HEADER + "@hookimpl\ndef dfq_generators():\n" + body + hook_for_listeners, entry_point="bad")
    install("dfq-gan", good("gan"))
    install("zeta-gan", good("zeta"))
    with pytest.warns(PluginWarning, match=f"dfq-bad 0.2: dfq_generators failed with {error}"):
        registry = build_registry()
    assert {"gan", "zeta"} <= set(registry.generators)
    assert not {"half", "single"} & set(registry.generators)
    assert "bad-listener" in registry.listeners
    assert [plugin.distribution for plugin in registry.broken] == ["dfq-bad"]
    with pytest.raises(PluginError, match=r"Broken plugin 'bad' of dfq-bad 0.2"):
        build_registry(strict=True)


def test_a_missing_framework_makes_a_plugin_unavailable_with_the_line_that_mends_it(install: Install) -> None:
    source = (
        HEADER
        + """
@hookimpl
def dfq_calibrators():
    yield CalibratorEntry("tpu", "", "a:b", requires=("torch", "no_such_tpu"), install="dfq-plugins[tpu]")
    yield CalibratorEntry("npu", "", "a:b", requires=("no_such_npu", "xml.no_such_child", "xml.dom.minidom"))
"""
    )
    install("dfq-tpu", source)
    registry = build_registry()
    tpu, npu = registry.calibrators["tpu"], registry.calibrators["npu"]
    assert (tpu.state, tpu.missing) == ("unavailable", ("no_such_tpu",))
    assert tpu.install_line == 'pip install "dfq-plugins[tpu]"'
    assert npu.missing == ("no_such_npu", "xml.no_such_child")
    assert npu.install_line == "pip install no_such_npu xml.no_such_child"
    message = r"Calibrator 'tpu' needs no_such_tpu \(not installed\). Run: pip install \"dfq-plugins\[tpu\]\""
    with pytest.raises(PluginError, match=message):
        registry.create("calibrator", "tpu")


def test_looking_for_a_framework_does_not_import_it(install: Install, tmp_path: Path) -> None:
    package = tmp_path / "heavy_framework_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "child.py").write_text("")
    install(
        "dfq-tpu",
        HEADER + "@hookimpl\ndef dfq_generators():\n"
        "    yield GeneratorEntry('gan', '', 'a:b', requires=('heavy_framework_plugin.child',))\n",
    )
    assert build_registry().generators["gan"].state == "ready"
    assert "heavy_framework_plugin" not in sys.modules


def test_an_unknown_name_lists_what_there_is(install: Install) -> None:
    install("dfq-gan", good("gan"))
    install(
        "dfq-tpu",
        HEADER + "@hookimpl\ndef dfq_generators():\n"
        "    yield GeneratorEntry('tpu', '', 'a:b', requires=('no_such_tpu',), install='tpu')\n",
    )
    install("dfq-bad", "import no_such_module", entry_point="bad")
    with pytest.warns(PluginWarning):
        registry = build_registry()
    with pytest.raises(PluginError) as caught:
        registry.find("generator", "gam")
    message = str(caught.value)
    assert message.startswith("Unknown generator 'gam'. Did you mean 'gan'? Available: ")
    assert "gan" in message.partition("Available: ")[2].partition(". Not installed")[0]
    assert 'Not installed: tpu (pip install "tpu").' in message
    assert "Broken: plugin 'bad' of dfq-bad 0.2: ModuleNotFoundError" in message


def test_with_nothing_installed_the_error_says_how_to_mend_it() -> None:
    with pytest.raises(PluginError, match=r"Available: none. Built-in plugins .*pip install dfq-plugins"):
        build_registry(entry_points=()).find("generator", "gan")


def test_an_error_in_a_plugin_carries_its_name(install: Install) -> None:
    install("dfq-gan", good("gan"))
    registry = build_registry()
    provided = registry.find("generator", "gan")
    arguments: dict[str, Any] = {"num_samples": 1, "batch_size": 1, "rng": None, "report": None}
    batches = registry.create("generator", "gan").generate(None, None, **arguments)  # type: ignore[arg-type]
    wrapped = attributed_iterator(batches, provided)
    assert next(wrapped) == "a batch"  # type: ignore[comparison-overlap]
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        next(wrapped)
    assert caught.value.__notes__ == ["in generator 'gan' from dfq-gan 0.2"]


def test_attribution_is_not_repeated_and_leaves_other_errors_alone(install: Install) -> None:
    install("dfq-gan", good("gan"))
    provided = build_registry().find("generator", "gan")
    with pytest.raises(ValueError, match="inner") as caught, attributed(provided), attributed(provided):
        raise ValueError("inner")
    assert caught.value.__notes__ == ["in generator 'gan' from dfq-gan 0.2"]
    consumer_error = KeyError("consumer")
    items = attributed_iterator(iter([1, 2]), provided)
    assert next(items) == 1
    with pytest.raises(KeyError):
        items.throw(consumer_error)  # type: ignore[attr-defined]
    assert not getattr(consumer_error, "__notes__", [])


def test_an_attributed_iterator_closes_the_plugins_iterator(install: Install) -> None:
    install("dfq-gan", good("gan"))
    provided = build_registry().find("generator", "gan")
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    items = attributed_iterator(source(), provided)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert list(attributed_iterator([1, 2], provided)) == [1, 2]


def test_outside_plugins_infer_the_input_before_built_in_ones_and_broken_ones_are_passed_over(install: Install) -> None:
    hook = "from dfq_plugins import InputSpec, hookimpl\n@hookimpl\ndef dfq_infer_input_spec(model):\n    "
    install("dfq-plugins", hook + "return InputSpec((1, 1))\n", entry_point="builtin", version="0.0")
    install("a-spec", hook + "return InputSpec((2, 2)) if model == 'two' else None\n")
    install("b-spec", hook + "raise OSError('no idea')\n")
    install("c-spec", hook + "return (3, 3)\n")
    registry = build_registry()
    with pytest.warns(PluginWarning) as caught:
        assert registry.infer_input_spec("two").shape == (2, 2)  # type: ignore[arg-type, union-attr]
    messages = " ".join(str(warning.message) for warning in caught)
    assert "b-spec 0.2: dfq_infer_input_spec failed with OSError: no idea" in messages
    assert "c-spec 0.2: dfq_infer_input_spec failed with TypeError: expected an InputSpec or None" in messages
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same failure is not warned of again
        assert registry.infer_input_spec("one").shape == (1, 1)  # type: ignore[arg-type, union-attr]


def test_no_recognised_model_has_no_inferred_input() -> None:
    assert build_registry(entry_points=()).infer_input_spec(None) is None  # type: ignore[arg-type]


def test_every_registry_has_plugins_of_its_own(install: Install) -> None:
    before = build_registry()
    install("dfq-gan", good("gan"))
    assert isinstance(before, Registry)
    assert "gan" not in before.generators
    assert "gan" in build_registry().generators


def test_a_distribution_without_metadata_is_named_by_its_module(install: Install, tmp_path: Path) -> None:
    install("dfq-gan", "1 / 0")
    (tmp_path / "dfq_gan-0.2.dist-info" / "METADATA").unlink()
    with pytest.warns(PluginWarning, match="plugin 'gan' of module dfq_gan_plugin: ZeroDivisionError"):
        build_registry()


def test_a_broken_plugin_says_all_in_a_line() -> None:
    assert str(BrokenPlugin(PluginSource("gan", "dfq-gan", "0.2"), "why")) == "plugin 'gan' of dfq-gan 0.2: why"
