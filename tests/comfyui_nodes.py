"""What the tests add to a ComfyUI server, as one file of custom nodes: ready conditionings, and tiny models' sizes.

ComfyUI's loaders have the sizes of the published text encoders built in, and read those of a transformer only in part.
So the tests hand over the states that the tiny text encoders make, and say the sizes of tiny transformers. All else is
ComfyUI's own: the loading and conversion of the weights, the LoRAs, the levels, the guiders, the samplers, the decoder.
"""

import json
import os

import comfy.model_detection
import comfy.supported_models
import folder_paths
from safetensors import safe_open

detect = comfy.model_detection.detect_unet_config


def detect_tiny(state_dict, key_prefix, *args, **kwargs):
    """ComfyUI's own detection, with the sizes that it takes for granted read from the weights."""
    config = detect(state_dict, key_prefix, *args, **kwargs)
    if config and config.get("image_model") == "flux":  # later versions of ComfyUI do the same
        width, config["context_in_dim"] = state_dict[f"{key_prefix}txt_in.weight"].shape
        config |= {"hidden_size": width, "num_heads": width // 128}
        config["vec_in_dim"] = state_dict[f"{key_prefix}vector_in.in_layer.weight"].shape[1]
    if config and config.get("image_model") == "qwen_image":
        config["num_attention_heads"] = state_dict[f"{key_prefix}img_in.weight"].shape[0] // 128
        config["joint_attention_dim"] = state_dict[f"{key_prefix}txt_norm.weight"].shape[0]
    if config and config.get("image_model") == "lumina2" and "n_heads" not in config:
        published = detect_published(state_dict, key_prefix, config["dim"])
        heads = {"n_heads": config["dim"] // 128, "n_kv_heads": config["dim"] // 128}
        config |= published | {"dim": config["dim"], "cap_feat_dim": config["cap_feat_dim"]} | heads
        comfy.supported_models.ZImage.unet_config = {"image_model": "lumina2", "dim": config["dim"]}
    return config


def detect_published(state_dict, key_prefix, dim):
    """What ComfyUI says of a Z-Image of these weights if it had the published width."""
    wide = dict(state_dict)
    key = f"{key_prefix}cap_embedder.1.weight"
    wide[key] = wide[key].new_empty(3840, 1)
    return detect(wide, key_prefix)


comfy.model_detection.detect_unet_config = detect_tiny


class GlanceConditioning:
    """The conditioning of a text, read from a file of the input folder."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "read"
    CATEGORY = "glance"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "file": ("STRING", {})}}

    def read(self, text, file):
        with safe_open(os.path.join(folder_paths.get_input_directory(), file), "pt") as opened:
            number = json.loads(opened.metadata()["texts"]).index(text)
            states = opened.get_tensor(f"{number}.prompt_embeds")
            pooled = f"{number}.pooled_prompt_embeds"
            found = {"pooled_output": opened.get_tensor(pooled)} if pooled in opened.keys() else {}
        return ([[states, found]],)


NODE_CLASS_MAPPINGS = {"GlanceConditioning": GlanceConditioning}
