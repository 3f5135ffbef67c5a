"""From answered conversations to token ids and loss masks.

    encode.write_tokens                  what the stage `tokens` calls
    preview.stored, preview.rendered     a few rows for people; shares the encoding ──► encode
    length_sample.sample_lengths         how long conversations are, before a run makes tokens (`deepspec plan`)

Ids that the target generated are kept as they are; any other conversation is rendered once by `data.chat`.
"""
