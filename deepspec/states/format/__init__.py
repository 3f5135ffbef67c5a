"""What a folder of target states looks like: Parquet that any library reads, without our code.

    shards ──► codecs ──► codec_sizes    vectors to bytes and back; how many bytes each codec takes
      └──────► layout ──► codec_sizes    `states.json`, the index, one file per shard; where documents lie

`layout.py` describes the files column by column. `codec_sizes.py` needs no torch: estimates ask it for bytes.
"""
