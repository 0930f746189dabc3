"""History stacking for many environments at once, as the exported policy does it for one robot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract


class HistoryStack:
    """Remembers the last frames of (features, action) of N environments, newest first, and zero where there was none yet.

    Args:
        contract: sizes and the number of frames.
        num_envs: number of environments N.
    """

    def __init__(self, contract: Contract, num_envs: int) -> None:
        self._frame_size = contract.frame_size
        self._frames = contract.history
        self.frames = np.zeros((num_envs, contract.history * contract.frame_size), dtype=np.float32)

    def observe(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return observations (N, O): the present features (N, F) followed by the remembered frames."""
        return np.concatenate([np.asarray(features, dtype=np.float32), self.frames], axis=1)

    def push(self, features: NDArray[Any], action: NDArray[Any]) -> None:
        """Remember the features (N, F) and the actions (N, A) that were taken on them."""
        if self._frames:
            frame = np.concatenate([features, action], axis=1).astype(np.float32)
            self.frames = np.concatenate([frame, self.frames[:, : -self._frame_size]], axis=1)

    def clear(self, ids: NDArray[np.int64]) -> None:
        """Forget the frames of the environments ``ids``, whose episodes ended."""
        self.frames[ids] = 0.0
