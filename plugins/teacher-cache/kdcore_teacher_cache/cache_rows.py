"""The row of `kdcore summary` about a cache."""

from __future__ import annotations

from kdcore import FinishedRun, SummaryRows, load_recipe


class CacheRows(SummaryRows):
    """Show from which cache the signals of each teacher were read."""

    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Return a row if a teacher of the run was cached."""
        settings = load_recipe(run.folder / "recipe.yaml", check_names=False).settings
        several = settings.teachers is not None
        texts = [
            f"{label}: {section['cache']}" if several else str(section["cache"])
            for label, section in settings.models_of_teachers.items()
            if "cache" in section
        ]
        return {"teacher's signals": f"read from a cache ({', '.join(texts)})"} if texts else {}
