"""Images as EVA-CLIP reads them: CLIP's preprocessing, with the centre crop of the reference."""

import numpy as np
from transformers.image_utils import SizeDict
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class EvaClipImageProcessor(CLIPImageProcessorPil):
    """
    RGB (transparency on white), shorter side to 448 pixels by PIL's antialiased bicubic filter (longer side rounded
    down), centre crop to 448 x 448, values in [0, 1] standardised by CLIP's mean and standard deviation.

    The centre crop is the one difference from CLIP's image processor: its offset `(size - crop) / 2` is rounded half
    to even, as torchvision does and so the reference, where CLIP's is rounded down. They part wherever `size - crop`
    is 3 more than a multiple of 4.

    Example:

    ```python
    >>> from PIL import Image

    >>> from blip3o_hf import EvaClipImageProcessor

    >>> image_processor = EvaClipImageProcessor()
    >>> tuple(image_processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape)
    (1, 3, 448, 448)

    ```
    """

    size = {"shortest_edge": 448}
    crop_size = {"height": 448, "width": 448}

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """
        Args:
            image (`[C, H, W]`): an image; where it is smaller than the crop, CLIP's zero padding applies.
            size: height and width of the crop.
        """
        height, width = image.shape[-2:]
        if size.height and size.width and height >= size.height and width >= size.width:
            top, left = round((height - size.height) / 2), round((width - size.width) / 2)
            image = image[..., top : top + size.height, left : left + size.width]
        return super().center_crop(image, size, **kwargs)


__all__ = ["EvaClipImageProcessor"]
