"""What compression saves, where the training's other figures go.

    callback = thinwire.scalars.TrainerCallback("quantize(bits=4)")
    Trainer(model, arguments, callbacks=[callback], ...).train()
"""

import json
import time

from thinwire.errors import Error, InvalidArgument


class Writer:
    """Writes the stats() of a handle: JSON lines to a file and, where given, TensorBoard scalars.

    Args:
        path: file that a line for every write() is appended to; None for none.
        tensorboard: a torch.utils.tensorboard.SummaryWriter, or the folder for one (which needs the
            package tensorboard); None for none.
    """

    def __init__(self, path=None, tensorboard=None):
        if isinstance(tensorboard, str):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise Error(f"TensorBoard scalars need `pip install tensorboard`: {error}") from error
            tensorboard = SummaryWriter(tensorboard)
        self._file = open(path, "a", encoding="utf-8") if path is not None else None
        self._tensorboard = tensorboard

    def write(self, stats):
        """Of a dict with "steps"; numbers in it become scalars thinwire/NAME."""
        if self._file is not None:
            self._file.write(json.dumps({"time": time.time(), **stats}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in stats.items():
                if name != "steps" and isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(f"thinwire/{name}", value, stats["steps"])

    def close(self):
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _trainer_callback_base():
    try:
        from transformers import TrainerCallback as Base
    except ImportError:
        return object
    return Base


class TrainerCallback(_trainer_callback_base()):
    """Compresses the gradients of a transformers.Trainer (or of accelerate under it).

    Args: as thinwire.compress(), and `writer`, a Writer whose write() is called at every log.
    Attributes:
        handle: what compress() returned, once training has begun.
    """

    def __init__(self, spec="", *, writer=None, **options):
        self.handle = None
        self._spec, self._options, self._writer = spec, options, writer

    def on_step_begin(self, args, state, control, model=None, **keywords):
        """The Trainer wraps the model after on_train_begin, hence here, before the first backward."""
        from torch.nn.parallel import DistributedDataParallel

        from thinwire._compress import compress
        if self.handle is not None:
            return
        wrapped = keywords.get("wrapped", model)
        if not isinstance(wrapped, DistributedDataParallel):
            wrapped = _wrapped_of(model)
        self.handle = compress(wrapped, self._spec, **self._options)

    def on_log(self, args, state, control, logs=None, **keywords):
        if self.handle is not None and self._writer is not None:
            self._writer.write(self.handle.stats())


def _wrapped_of(model):
    """The DistributedDataParallel around `model`, which the Trainer does not tell callbacks of."""
    import gc

    from torch.nn.parallel import DistributedDataParallel
    for owner in gc.get_referrers(model.__dict__.get("_modules", {}), model):
        if isinstance(owner, DistributedDataParallel):
            return owner
        if isinstance(owner, dict):
            for candidate in gc.get_referrers(owner):
                if isinstance(candidate, DistributedDataParallel) and candidate.module is model:
                    return candidate
    raise InvalidArgument("the Trainer has not wrapped the model with DistributedDataParallel: "
                          "start it with several ranks, as by torchrun --nproc-per-node=2")
