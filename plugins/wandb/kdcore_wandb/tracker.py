"""The tracker `wandb`."""

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

from kdcore import ComponentConfig, InputError, MachineError, Tracker, load_recipe

logger = logging.getLogger("kdcore")

_SECONDS_TO_SEND = 120.0
"""How long a finished run waits for wandb's server; what has not been sent then can be sent by `wandb sync`."""


class WandbTracker(Tracker):
    """Sends metrics to Weights & Biases, one run there for one run folder, however often it is restarted.

    The run's id and the last step that was logged are kept in `wandb/run.json` of the run folder. A run that goes on
    from an earlier step than that logs nothing until it is past it: wandb cannot take back rows, and what kdcore
    computes again is the same. So no step is there twice, and sessions that were offline are disjoint, as `wandb sync
    --append` needs them.

    Training does not depend on it: when wandb fails on the way, that is said once and training goes on.
    """

    class Config(ComponentConfig):
        """Keys of an entry `wandb` in `tracking`."""

        project: str | None = Field(None, description="Project; default: WANDB_PROJECT, else wandb's own.")
        entity: str | None = Field(None, description="User or team; default: WANDB_ENTITY, else the user's own.")
        mode: Literal["online", "offline", "disabled"] | None = Field(
            None, description="Default: WANDB_MODE, else online. Offline runs are sent by `wandb sync`."
        )

    config: Config

    def __init__(self, config: Config, run_folder: Path) -> None:
        """Start or continue the run.

        Raises:
            InputError: wandb is to be online and there is no key for it, or the file of an earlier session is damaged.
            MachineError: wandb cannot be reached or does not start.
        """
        super().__init__(config, run_folder)
        mode = config.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.api.api_key:
            raise InputError(
                "wandb is online, but has no key for it",
                key="tracking",
                hint="Run `wandb login`, set WANDB_API_KEY, or state `mode: offline`.",
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
        """Send the metrics, unless an earlier session has sent this step."""
        if self._run is None or step <= self._already_logged:
            return
        if step > self._logged:
            self._logged = step
            self._write_state()  # before it is sent: rather a row that is missing than one that is there twice
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:  # whatever is wrong with wandb, 90 hours of training are worth more
            self._give_up(error)

    def rewind(self, step: int) -> None:
        """Nothing: what an earlier session has logged beyond `step` is left, and not logged again."""

    def close(self) -> None:
        """Have wandb write or send what it has, and end the session."""
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
                resume="allow" if mode == "online" else None,  # offline it does nothing but complain
                config=self._recipe(),
                settings=wandb.Settings(silent=True, console="off", save_code=False, finish_timeout=_SECONDS_TO_SEND),
            )
        except wandb.Error as error:
            raise MachineError(f"wandb does not start: {error}") from error

    def _recipe(self) -> dict[str, Any]:
        """The recipe as stored in the run folder, so that runs can be compared by their settings."""
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
                "the file does not hold the id and the last step of a wandb run",
                where=str(self._state_file),
                hint="Remove it: metrics then go to a new run of wandb's.",
            ) from error

    def _write_state(self) -> None:
        staging = self._state_file.with_suffix(".staging")
        staging.write_text(json.dumps({"id": self._id, "step": self._logged}) + "\n", encoding="utf-8")
        os.replace(staging, self._state_file)

    def _give_up(self, error: Exception) -> None:
        logger.warning(f"wandb has failed and is left out from here on: {type(error).__name__}: {error}")
        self._run = None
