"""Finding components: from metadata, by name, with hints for wrong names."""

from __future__ import annotations

import sys
import zlib

import pytest

from kdcore import registry
from kdcore.errors import EXIT_INPUT, PluginError

SCHEDULER = """
from kdcore.recipe.schema import ComponentConfig
from kdcore.schedulers.base import Scheduler

class Constant(Scheduler):
    class Config(ComponentConfig):
        value: float = 1.0

    def factor(self, progress):
        return self.config.value
"""


def test_listing_imports_nothing(packages):
    code = "raise RuntimeError('imported')"
    packages.install("kdcore-flat", {"kdcore.schedulers:flat": "flat_a:Constant"}, {"flat_a.py": code})
    assert "flat" in registry.schedulers.names()
    entry = next(entry for entry in registry.schedulers.entries() if entry.name == "flat")
    assert (entry.distribution, entry.version, entry.value) == ("kdcore-flat", "1.0", "flat_a:Constant")
    assert registry.schedulers.find("flat") == entry
    assert "flat_a" not in sys.modules


def test_a_component_is_imported_when_its_name_is_asked_for(packages):
    packages.install("kdcore-flat", {"kdcore.schedulers:flat": "flat_b:Constant"}, {"flat_b.py": SCHEDULER})
    cls = registry.schedulers.get("flat")
    assert cls.__name__ == "Constant"
    assert cls(cls.Config(value=0.5)).factor(None) == 0.5


def test_an_unknown_name_is_answered_with_near_names_and_all_names():
    with pytest.raises(PluginError, match="unknown scheduler `linaer`") as caught:
        registry.schedulers.get("linaer", where="recipe.yaml:7", key="scheduler")
    text = str(caught.value)
    assert "Did you mean `linear`?" in text
    assert text.startswith("recipe.yaml:7: scheduler: ")
    assert caught.value.exit_code == EXIT_INPUT


def test_the_name_of_a_method_in_a_paper_is_answered_with_ours(monkeypatch):
    with pytest.raises(PluginError, match="unknown loss `pear_col`") as caught:
        registry.losses.get("pear_col")
    assert "Hint: kdcore calls it `attention_pearson`." in str(caught.value)


def test_an_unknown_name_is_answered_with_the_package_that_would_provide_it(monkeypatch):
    known = {"kdcore.schedulers": {"cosine_restarts": "kdcore-cosine"}}
    monkeypatch.setattr(registry, "_known_packages", lambda: known)
    with pytest.raises(PluginError, match="pip install kdcore-cosine"):
        registry.schedulers.get("cosine_restarts")
    with pytest.raises(PluginError, match=r"mean `cosine_restarts` \(`pip install kdcore-cosine`\) or `cosine`\?$"):
        registry.schedulers.get("cosine_restart")


def test_a_near_name_that_is_installed_and_known_is_suggested_once(monkeypatch):
    monkeypatch.setattr(registry, "_known_packages", lambda: {"kdcore.schedulers": {"linear": "kdcore"}})
    with pytest.raises(PluginError, match=r"Hint: Did you mean `linear`\?$"):
        registry.schedulers.get("linaer")


def test_a_name_of_the_core_that_a_package_has_taken_over_is_found_there(packages):
    assert registry.corpora.find("kdcore:text").distribution == "kdcore-preparation"
    packages.install("kdcore-preparation", {"kdcore.corpora:text": "text_a:Text"}, version="9.9")
    assert registry.corpora.find("kdcore:text").version == "9.9"
    with pytest.raises(PluginError, match="unknown corpus `kdcore:txt`"):
        registry.corpora.find("kdcore:txt")


def test_two_packages_with_one_name_matter_only_when_it_is_asked_for(packages):
    for letter in "ab":
        packages.install(
            f"kdcore-{letter}",
            {"kdcore.schedulers:twice": f"twice_{letter}:Constant", f"kdcore.schedulers:only_{letter}": "x:Y"},
            {f"twice_{letter}.py": SCHEDULER},
        )
    assert registry.schedulers.get("linear").__module__ == "kdcore.schedulers.linear"
    with pytest.raises(
        PluginError, match=r"is ambiguous: provided by package kdcore-a 1\.0 and package kdcore-b 1\.0"
    ) as caught:
        registry.schedulers.get("twice")
    assert "kdcore-a:twice, kdcore-b:twice" in str(caught.value)
    assert registry.schedulers.get("kdcore-b:twice").__module__ == "twice_b"
    assert registry.schedulers.get("KDCORE_A:twice").__module__ == "twice_a"
    with pytest.raises(
        PluginError, match="The package kdcore-c does not provide it; these packages do: kdcore-a, kdcore-b"
    ):
        registry.schedulers.get("kdcore-c:twice")


def test_a_package_installed_twice_is_the_one_that_python_imports(packages, tmp_path, monkeypatch):
    packages.install("kdcore-flat", {"kdcore.schedulers:flat": "flat:New"}, version="2.0")
    old = type(packages)(tmp_path / "behind")
    old.install("kdcore-flat", {"kdcore.schedulers:flat": "flat:Old"}, version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(old.folder)])
    found = [entry for entry in registry.schedulers.entries() if entry.name == "flat"]
    assert [entry.version for entry in found] == ["2.0"]


def test_a_broken_plugin_breaks_nobody_else_and_tells_its_cause_each_time(packages):
    packages.install(
        "kdcore-bad",
        {"kdcore.schedulers:bad": "bad_plugin:Constant"},
        {"bad_plugin.py": "import sys\nimport no_such_module_anywhere\n"},
    )
    assert registry.schedulers.get("linear")
    for _ in range(2):
        with pytest.raises(PluginError, match=r"ModuleNotFoundError.*no_such_module_anywhere.*bad_plugin\.py:2") as bad:
            registry.schedulers.get("bad")
        assert "kdcore-bad 1.0" in str(bad.value)


def test_the_first_cause_is_kept_where_a_second_import_would_fail_otherwise(packages):
    code = "import builtins\nif hasattr(builtins, 'kd_seen'): raise KeyError('again')\nbuiltins.kd_seen = 1\n1 / 0\n"
    packages.install("kdcore-bad", {"kdcore.schedulers:bad": "bad_twice:Constant"}, {"bad_twice.py": code})
    for _ in range(2):
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            registry.schedulers.get("bad")


def test_a_plugin_that_ends_python_when_imported_is_an_error_like_others(packages):
    packages.install("kdcore-bad", {"kdcore.schedulers:bad": "bad_exit:X"}, {"bad_exit.py": "raise SystemExit(5)"})
    with pytest.raises(PluginError, match="SystemExit: 5"):
        registry.schedulers.get("bad")


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        (("kdcore>=0.1,<0.2",), True),
        (("kdcore>=7",), False),
        (("kdcore<0.1",), True),
        (("kdcore>=0.0.1,<0.1,!=0.1.0",), False),
        (("kdcore==0.0.*",), True),
        (("kdcore~=3.1",), False),
        (('kdcore>=7; extra == "new"',), True),
        (("torch>=99", "not a requirement!"), True),
        ((), True),
    ],
)
def test_a_plugin_for_another_kdcore_is_told_without_importing_it(packages, requires, fits):
    code = "raise RuntimeError('imported')"
    packages.install(
        "kdcore-flat", {"kdcore.schedulers:flat": "flat_c:Constant"}, {"flat_c.py": code}, requires=requires
    )
    if fits:
        assert registry.schedulers.find("flat").misfit is None
    else:
        with pytest.raises(PluginError, match=r"built for kdcore[!>].*but kdcore 0\.1\.0 is installed") as caught:
            registry.schedulers.get("flat")
        bound = {"kdcore>=7": ">=7", "kdcore~=3.1": ">=3.1"}.get(requires[0], "!=0.1.0,>=0.0.1")
        other = "Hint: Run `pip install --upgrade kdcore-flat`. If that is the newest version already: "
        advice = (other if "!" in bound else "Hint: Run ") + f'`pip install "kdcore{bound}"`.'
        assert str(caught.value).splitlines()[-1].strip() == advice


@pytest.mark.parametrize(
    ("apis", "what", "hint"),
    [
        ((), None, None),
        ((1,), None, None),
        ((2,), None, None),
        ((2, 3), None, None),
        ((3,), "plugin API 3, but kdcore 0.1.0 supports 1 and 2", "Run `pip install --upgrade kdcore`."),
        ((3, 4), "plugin API 3 and 4, but kdcore 0.1.0 supports 1 and 2", "Run `pip install --upgrade kdcore`."),
        ((0,), "plugin API 0, but kdcore 0.1.0 supports 1 and 2", "Run `pip install --upgrade kdcore-flat`."),
    ],
)
def test_the_plugin_api_that_a_package_was_built_for_decides(packages, apis, what, hint):
    points = {"kdcore.schedulers:flat": "flat_api:Constant"} | {f"kdcore.plugin_api:{api}": "flat_api" for api in apis}
    packages.install("kdcore-flat", points, {"flat_api.py": SCHEDULER}, requires=("kdcore>=0.1,<0.1.0",))
    if what is None:
        assert registry.schedulers.get("flat").__name__ == "Constant"
        return
    with pytest.raises(PluginError) as caught:
        registry.schedulers.get("flat")
    assert str(caught.value).splitlines() == [
        f"scheduler `flat` of kdcore-flat 1.0 is built for {what}",
        f"  Hint: {hint}",
    ]


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (
            "from kdcore import NewThing",
            "uses a name that kdcore 0.1.0 does not have: run `pip install --upgrade kdcore`",
        ),
        ("import kdcore.new_module", "uses a name that kdcore 0.1.0 does not have: run `pip install --upgrade kdcore`"),
        ("import kdcore; kdcore.NewThing", "uses a name that kdcore 0.1.0 does not have"),
        ("import no_such_flash", "needs the module `no_such_flash`: install the package that contains it"),
        ("import hint_module.missing", "repair it, or reinstall it with `pip install --force-reinstall kdcore-flat`"),
        ("1 / 0", "repair it, or reinstall it with `pip install --force-reinstall kdcore-flat`"),
    ],
)
def test_the_advice_on_a_failed_import_fits_its_cause(packages, code, hint):
    module = f"hint_{zlib.crc32(code.encode())}"
    files = {f"{module}/__init__.py": f"{code.replace('hint_module', module)}\n"}
    packages.install("kdcore-flat", {"kdcore.schedulers:flat": f"{module}:Constant"}, files)
    with pytest.raises(PluginError, match="cannot be imported") as caught:
        registry.schedulers.get("flat")
    assert hint in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("X = 5", "5 is not a class"),
        ("class X: pass", "X does not derive from kdcore.Scheduler"),
        ("from kdcore.schedulers.base import Scheduler\nclass X(Scheduler): pass", "X does not define factor"),
        (SCHEDULER.replace("(ComponentConfig)", "") + "X = Constant", "no nested class `Config`"),
        (
            SCHEDULER.replace("value: float", "model_config = {'extra': 'allow'}\n        value: float")
            + "X = Constant",
            "accepts unknown keys",
        ),
        ("", "AttributeError"),
    ],
)
def test_a_component_that_is_not_what_its_kind_asks_for_is_refused(packages, code, complaint):
    module = f"refused_{len(code)}"
    packages.install("kdcore-odd", {"kdcore.schedulers:odd": f"{module}:X"}, {f"{module}.py": code})
    with pytest.raises(PluginError) as caught:
        registry.schedulers.get("odd")
    assert complaint in str(caught.value)


def test_a_config_has_to_keep_the_keys_of_its_kind(packages):
    code = """
from abc import ABC
from kdcore.recipe.schema import ComponentConfig
class Base(ABC):
    class Config(ComponentConfig):
        weight: float = 1.0
class X(Base):
    class Config(ComponentConfig):
        pass
"""
    packages.install("kdcore-odd", {"kdcore.test:odd": "odd_config:X"}, {"odd_config.py": code})
    kind = registry.Registry("kdcore.test", "thing", "odd_config:Base")
    import odd_config

    with pytest.raises(PluginError, match="Config lacks weight; derive it from odd_config"):
        kind.register("x")(odd_config.X)


UPGRADE_FLAT = "Run `pip install --upgrade kdcore-flat`. If that is the newest version already: "


@pytest.mark.parametrize(
    ("requires", "what", "hint"),
    [
        ("kdcore-helper>=2", "kdcore-helper>=2 (found 1.0)", 'Run `pip install "kdcore-helper>=2"`.'),
        ("kdcore-helper>1.0", "kdcore-helper>1.0 (found 1.0)", 'Run `pip install "kdcore-helper>1.0"`.'),
        ("kdcore-helper==2.*", "kdcore-helper==2.* (found 1.0)", 'Run `pip install "kdcore-helper==2.*"`.'),
        ("kdcore-helper~=1.1", "kdcore-helper~=1.1 (found 1.0)", 'Run `pip install "kdcore-helper~=1.1"`.'),
        (
            "kdcore-helper<1",
            "kdcore-helper<1 (found 1.0)",
            UPGRADE_FLAT + '`pip install "kdcore-helper<1"`.',
        ),
        (
            "kdcore-helper==0.9.*",
            "kdcore-helper==0.9.* (found 1.0)",
            UPGRADE_FLAT + '`pip install "kdcore-helper==0.9.*"`.',
        ),
        ("kdcore-nowhere", "kdcore-nowhere, which is not installed", "Run `pip install kdcore-nowhere`."),
        ("kdcore-nowhere>=3", "kdcore-nowhere, which is not installed", 'Run `pip install "kdcore-nowhere>=3"`.'),
        (
            "kdcore-middle",
            "kdcore-middle 0.5, which needs kdcore-helper>=4 (found 1.0)",
            'Run `pip install "kdcore-helper>=4"`.',
        ),
        (
            "kdcore-future",
            "kdcore-future 9.0, which needs kdcore>=9 (found 0.1.0)",
            'Run `pip install "kdcore>=9"`.',
        ),
    ],
)
def test_a_package_whose_own_requirement_does_not_fit_is_refused_without_importing_it(packages, requires, what, hint):
    packages.install("kdcore-helper", {})
    packages.install("kdcore-middle", {}, version="0.5", requires=("kdcore>=0.1", "kdcore-helper>=4"))
    packages.install("kdcore-future", {}, version="9.0", requires=("kdcore>=9",))
    points = {"kdcore.schedulers:flat": "never_imported:Constant"}
    packages.install("kdcore-flat", points, requires=("kdcore>=0.1", "other>=3", requires))
    with pytest.raises(PluginError) as caught:
        registry.schedulers.get("flat")
    message, advice = str(caught.value).splitlines()
    assert message == f"scheduler `flat` comes from kdcore-flat 1.0, which needs {what}"
    assert advice == f"  Hint: {hint}"


def test_packages_that_require_each_other_are_used(packages):
    packages.install("kdcore-helper", {}, requires=("kdcore-flat>=1",))
    points = {"kdcore.schedulers:flat": "flat_cycle:Constant"}
    packages.install("kdcore-flat", points, {"flat_cycle.py": SCHEDULER}, requires=("kdcore-helper>=1",))
    assert registry.schedulers.get("flat").__name__ == "Constant"


def test_a_package_whose_own_requirements_fit_is_used(packages):
    packages.install("kdcore-helper", {})
    packages.install("kdcore-past", {}, version="0.0.1", requires=("kdcore<0.1",))
    points = {"kdcore.schedulers:flat": "flat_fits:Constant"}
    requires = ("kdcore-past", "kdcore-helper>=1,<2", 'kdcore-nowhere>=1; extra == "more"')
    packages.install("kdcore-flat", points, {"flat_fits.py": SCHEDULER}, requires=requires)
    assert registry.schedulers.get("flat").__name__ == "Constant"


@pytest.mark.parametrize(
    "damaged",
    [
        {"entry_points.txt": b"[kdcore.schedulers]\nthis is not an entry point\n"},
        {"entry_points.txt": b"\xff\xfe[kdcore.schedulers]\nflat = x:Y\n"},
        {"METADATA": b"Metadata-Version: 2.1\nName: kdcore-bad\nVersion: 1.0\nSummary: \xff\n"},
        {"METADATA": b"Metadata-Version: 2.1\nName: kdcore-bad\n"},
        {"METADATA": None},
    ],
)
def test_damaged_metadata_is_reported_and_stops_no_other_package(packages, capsys, damaged):
    """As an installation or removal leaves it that was interrupted."""
    packages.install("kdcore-bad", {"kdcore.schedulers:bad": "bad_metadata:X"})
    (info,) = packages.folder.glob("*.dist-info")
    for name, content in damaged.items():
        (info / name).unlink() if content is None else (info / name).write_bytes(content)
    assert registry.schedulers.get("linear").__module__ == "kdcore.schedulers.linear"
    assert "bad" not in registry.schedulers.names()
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {info} is ignored: its metadata is damaged (")
