"""Networks of the experiments, as functions that return a plain ``nn.Module``."""

from qat_ste.models.flax_cnn import flax_cnn
from qat_ste.models.gpt import gpt
from qat_ste.models.hf import hf, with_linear_layers
from qat_ste.models.keras_cnn import keras_cnn
from qat_ste.models.small_cnn import small_cnn
from qat_ste.models.small_resnet import small_resnet
from qat_ste.models.torchvision import torchvision_model

__all__ = ["flax_cnn", "gpt", "hf", "keras_cnn", "small_cnn", "small_resnet", "torchvision_model", "with_linear_layers"]
