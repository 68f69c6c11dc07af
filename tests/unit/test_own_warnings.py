"""The warning filters of the test suite: our own deprecations are errors, those of other packages are not."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["kdcore", "kdcore.data.shards", "kdcore_budget_bert.model", "kdcore_launch.job"])
def test_a_deprecation_raised_from_our_code_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="old"):
        warnings.warn_explicit("old", category, "file.py", 1, module=module)


def test_a_deprecation_raised_from_another_package_is_none(recwarn: pytest.WarningsRecorder) -> None:
    warnings.warn_explicit("old", FutureWarning, "file.py", 1, module="somebody_else.nn")
    assert [str(one.message) for one in recwarn.list] == ["old"]
