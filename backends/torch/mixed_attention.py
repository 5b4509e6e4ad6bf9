"""`mixed_attention` for PyTorch tensors."""

from zigzag.backends.eager.mixed_attention import two_calls
from zigzag.backends.torch.attention import attention

mixed_attention = two_calls(attention)
