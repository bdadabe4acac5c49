"""A random BERT of two layers with a word-level tokeniser, saved as a local folder."""

from pathlib import Path

import torch

WORDS = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "cat": 4, "dog": 5}


def save(folder: Path) -> Path:
    """Needs ``transformers``."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **shape)).save_pretrained(folder)
    return folder
