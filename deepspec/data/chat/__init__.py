"""Conversations as the target sees them: rendered text, token ids, and which tokens are supervised.

    renderer = Renderer(load_tokenizer(target), family.chat, thinking="off")
    renderer.prompt_ids(messages, …)     what the target reads before it answers
    renderer.encode(…)                   a whole conversation with its loss mask

    renderer ──► prepared            a conversation as the template is given it: thoughts apart, calls read
       ├──► template                 runs the template within bounds of steps, sizes and depth
       ├──► template_layout          where the template put each content, found with placeholders
       ├──► supervision              which characters are supervised: the two masks
       │        └────────► formats   what a template writes around the assistant's turns, a value per family; all use it
       └──► tokenizer                loads the target's tokenizer, and says which one it is
                └──► tokenizer_files     what its files say of it, without loading it

The target's own template, in jinja's sandbox, writes the text; a format only finds the answers in it.
"""
