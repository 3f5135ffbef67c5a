"""The processes of a training: started, followed, ended.

    launch ──► attempt     the files through which launcher and workers talk
      ║           ▲
      ╚═══► worker ──► lock        one training at a time in a work folder
               └─────► loop.fit    on the objective that the job names

`launch` starts one worker, or several under torchrun, and brings back how they ended; an error comes back as the class
that it was (`training.failure`).
"""
