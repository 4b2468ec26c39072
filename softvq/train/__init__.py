from softvq.train.loop import train
from softvq.train.players import Player, Task, Turn

__all__ = ["Player", "Task", "Turn", "train"]
