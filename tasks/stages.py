"""All stages, in the order in which runs call them: to add one, write a file and a line here."""

from tasks.calibrate import calibrate
from tasks.conversations import conversations
from tasks.demo.corpus import demo_corpus
from tasks.demo.target import demo_target
from tasks.demo.tokenizer import demo_tokenizer
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.import_ import import_
from tasks.promote import promote
from tasks.register import register
from tasks.responses import responses
from tasks.runtime.stage import Stage
from tasks.states import states
from tasks.tokens import tokens
from tasks.train import train

STAGES: tuple[Stage, ...] = (
    demo_corpus,
    demo_tokenizer,
    demo_target,
    conversations,
    responses,
    tokens,
    states,
    train,
    import_,
    calibrate,
    evaluate,
    register,
    gate,
    promote,
)
