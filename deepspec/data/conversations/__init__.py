"""From sources to conversations: validated, without duplicates and benchmark prompts, in disjoint splits, sorted.

    build ──► mixture             how many rows of each source are taken, and which
      ├─────► near_duplicates ──► words     one prompt of each group stays
      ├─────► decontamination ──► words     benchmarks stay out
      ├─────► external_sort       sorted on disk, a piece at a time
      └─────► statistics ───────► statistics_page

`write_conversations` in `build.py` is what the stage `conversations` calls. Rows that share what is asked fall into
the same split; what was left out is listed and counted in the artifact's `about/`.
"""
