from softvq.train.loop import Task, train

__all__ = ["Task", "train"]
