"""Settings of the smallest entry."""

from recombine.engine.settings import EngineSettings, OptimizerNode
from recombine.run.settings import EntrySettings


class FitSettings(EntrySettings):
    """A line fitted by gradient descent."""

    steps: float = 20
    noise: float = 0.1
    pause: float = 0
    hold: bool = False
    shuffle: bool = False
    widths: list[int] = [1, 2]
    optimizer: OptimizerNode
    engine: EngineSettings = EngineSettings()

    def check(self, path):
        return [f"noise={self.noise:g}: must not be negative; noise=0"] if self.noise < 0 else []
