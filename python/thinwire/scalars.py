"""What compression saves, where the training's other figures go.

    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    compression = thinwire.scalars.compress_trainer(trainer, "quantize(bits=4)")
    trainer.train()
    print(compression.handle.stats())
"""

import json
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

from thinwire.errors import Error, InvalidArgument


class Writer:
    """Writes the stats() of a handle: JSON lines to a file and, where given, TensorBoard scalars.

    Args:
        path: file that a line for every write() is appended to; None for none.
        tensorboard: a torch.utils.tensorboard.SummaryWriter, or the folder for one (which needs the
            package tensorboard); None for none.
    """

    def __init__(self, path: str | None = None, tensorboard: Any = None) -> None:
        if isinstance(tensorboard, str):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise Error(f"TensorBoard scalars need `pip install tensorboard`: {error}") from error
            tensorboard = SummaryWriter(tensorboard)
        self._file = open(path, "a", encoding="utf-8") if path is not None else None
        self._tensorboard = tensorboard

    def write(self, stats: Mapping[str, Any]) -> None:
        """Of a dict with "steps"; numbers in it become scalars thinwire/NAME."""
        if self._file is not None:
            self._file.write(json.dumps({"time": time.time(), **stats}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in stats.items():
                if name != "steps" and isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(f"thinwire/{name}", value, stats["steps"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def compress_trainer(trainer: Any, spec: str = "", *, writer: Writer | None = None,
                     **options: Any) -> Any:
    """Compresses the gradients of a transformers.Trainer, or of accelerate under it.

    Call it before trainer.train(). The model is compressed at the first step, when the Trainer has
    wrapped it with DistributedDataParallel. Each rank adds its state to the Trainer's checkpoints,
    thinwire-RANK.pt, and trainer.train(resume_from_checkpoint=True) goes on from it.

    Args:
        spec, options: as thinwire.compress().
        writer: a Writer, whose write() is called whenever the Trainer logs.

    Returns:
        an object whose `handle` is what compress() returned, None before the first step.
    """
    import torch
    import torch.distributed as dist
    from transformers import TrainerCallback

    from thinwire._agreement import agreed
    from thinwire._compress import compress

    def file_of(arguments, state):
        return pathlib.Path(arguments.output_dir, f"checkpoint-{state.global_step}",
                            f"thinwire-{dist.get_rank()}.pt")

    class Callback(TrainerCallback):
        handle = None

        def on_save(self, arguments, state, control, **keywords):
            if self.handle is not None:
                file = file_of(arguments, state)
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(self.handle.state_dict(), file)

        def resume(self, file):
            found = agreed(self.handle.module.process_group, "the Trainer's checkpoint", file.exists,
                           lambda found: "with thinwire's state" if found else "without it")
            if not found:
                warnings.warn(f"{file.parent} has no state of thinwire's: what compression had put off "
                              "until later steps is lost", stacklevel=2)
                return
            self.handle.load_state_dict(agreed(self.handle.module.process_group, str(file.parent),
                                               lambda: torch.load(file)))

        def on_step_begin(self, arguments, state, control, **keywords):
            if self.handle is not None:
                return
            if trainer.model_wrapped is trainer.model:
                raise InvalidArgument("the Trainer has not wrapped the model, so there is nothing "
                                      "to compress: start several ranks, as torchrun does")
            self.handle = compress(trainer.model_wrapped, spec, **options)
            if state.global_step > 0:
                self.resume(file_of(arguments, state))

        def on_log(self, arguments, state, control, **keywords):
            if self.handle is not None and writer is not None:
                writer.write(self.handle.stats())

    callback = Callback()
    trainer.add_callback(callback)
    return callback
