"""Messages that all ranks have and one should say."""

from __future__ import annotations

import logging

import torch


def log_debug_on_rank0(logger: logging.Logger, message: str, *args: object) -> None:
    """Log a debug message on rank 0; where there are no ranks yet, log it."""
    _log(logger, logging.DEBUG, message, args)


def log_info_on_rank0(logger: logging.Logger, message: str, *args: object) -> None:
    """Log a message on rank 0; where there are no ranks yet, log it."""
    _log(logger, logging.INFO, message, args)


def log_warning_on_rank0(logger: logging.Logger, message: str, *args: object) -> None:
    """Log a warning on rank 0; where there are no ranks yet, log it."""
    _log(logger, logging.WARNING, message, args)


def _log(logger: logging.Logger, level: int, message: str, args: tuple[object, ...]) -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
        return
    # The place that is logged is the caller's, three frames up.
    logger.log(level, message, *args, stacklevel=3)
