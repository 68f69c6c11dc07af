"""Define the tracker `wandb`."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from pydantic import Field

from kdcore import ComponentConfig, InfrastructureError, InputError, Tracker, atomic_write, load_recipe

logger = logging.getLogger("kdcore")

_SECONDS_TO_SEND = 120.0
"""Time that a finished run waits for uploads; remaining data can be uploaded with `wandb sync`."""


class WandbTracker(Tracker):
    """Log metrics to Weights & Biases, with one wandb run per run folder across restarts.

    The run's id and the last logged step are stored in `wandb/run.json` of the run folder. A run that resumes from an
    earlier step logs nothing until it has passed the last logged one, because wandb cannot delete rows and recomputed
    values are equal. Therefore no step is logged twice, and offline sessions are disjoint, as required by
    `wandb sync --append`.

    Training does not depend on wandb: if it fails during training, a warning is logged once and training continues.
    """

    class Config(ComponentConfig):
        """Keys of an entry `wandb` in `tracking`."""

        project: str | None = Field(None, description="Project; default: WANDB_PROJECT, or wandb's default.")
        entity: str | None = Field(
            None, description="User or team; default: WANDB_ENTITY, or the user's default entity."
        )
        mode: Literal["online", "offline", "disabled"] | None = Field(
            None, description="Default: WANDB_MODE, or online. Offline runs can be uploaded with `wandb sync`."
        )

    config: Config

    def __init__(self, config: Config, run_folder: Path) -> None:
        """Start or continue the run.

        Raises:
            InputError: the mode is online without an API key, or the state file of an earlier session is damaged.
            InfrastructureError: wandb is not reachable or fails to start.
        """
        super().__init__(config, run_folder)
        mode = config.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.api.api_key:
            raise InputError(
                "wandb has no API key, which the mode `online` requires",
                key="tracking",
                hint="Run `wandb login`, set WANDB_API_KEY, or set `mode: offline`.",
            )
        self._state_file = run_folder / "wandb" / "run.json"
        self._state_file.parent.mkdir(exist_ok=True)
        state = self._read_state()
        self._id: str = state["id"]
        self._logged: int = state["step"]
        self._already_logged = self._logged
        self._write_state()
        self._run: wandb.Run | None = self._start(mode)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics, unless an earlier session has logged this step."""
        if self._run is None or step <= self._already_logged:
            return
        if step > self._logged:
            self._logged = step
            self._write_state()  # written first: a missing row is better than a duplicate one
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:  # a failure of wandb must not end the training
            self._give_up(error)

    def rewind(self, step: int) -> None:
        """Do nothing: rows of an earlier session after `step` are kept and not logged again."""

    def close(self) -> None:
        """Flush or upload pending data and end the session."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _start(self, mode: Any) -> wandb.Run:
        folder, config = self.run_folder, self.config
        try:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                name=f"{folder.parent.name}/{folder.name}",
                group=folder.parent.name,
                dir=str(folder),
                mode=mode,
                id=self._id,
                resume="allow" if mode == "online" else None,  # offline it has no effect except a warning
                config=self._recipe(),
                settings=wandb.Settings(silent=True, console="off", save_code=False, finish_timeout=_SECONDS_TO_SEND),
            )
        except wandb.Error as error:
            raise InfrastructureError(f"wandb failed to start: {error}") from error

    def _recipe(self) -> dict[str, Any]:
        """Return the recipe stored in the run folder, so that runs can be compared by their settings."""
        stored = self.run_folder / "recipe.yaml"
        return load_recipe(stored).data if stored.exists() else {}

    def _read_state(self) -> dict[str, Any]:
        if not self._state_file.exists():
            return {"id": secrets.token_hex(8), "step": -1}
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            return {"id": str(state["id"]), "step": int(state["step"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "the file does not contain the id and the last step of a wandb run",
                where=str(self._state_file),
                hint="Remove it to log to a new wandb run.",
            ) from error

    def _write_state(self) -> None:
        with atomic_write(self._state_file) as file:
            file.write(json.dumps({"id": self._id, "step": self._logged}).encode() + b"\n")

    def _give_up(self, error: Exception) -> None:
        logger.warning(f"wandb failed; training continues without it: {type(error).__name__}: {error}")
        self._run = None
