"""peftjax: full fine-tuning and parameter-efficient fine-tuning through one code path, in JAX and Flax."""

from peftjax import adapters, masks, methods
from peftjax.errors import UserError
from peftjax.loading import load
from peftjax.model import Model
from peftjax.wrap.making import wrap

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "adapters", "load", "masks", "methods", "wrap"]
