"""Chat templates do what they do with transformers, and no harm."""

import time

import pytest

from g1_ray.models import template as module
from g1_ray.models.chat import Chat
from g1_ray.models.find import model_path
from g1_ray.models.template import Templates

USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a <b> & 'ü'"}]}
ORDINARY = [
    "{% for m in messages %}{{ m.role }}: {{ m['content'][1].text }}\n{% endfor %}",
    "  {% if add_generation_prompt %}\n  assistant{% endif %}\n{{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}{{ tools is none }}",
    "{% generation %}{{ eos_token }}{% endgeneration %}{{ strftime_now('%Y') }}{{ documents is none }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
]


@pytest.fixture(scope="module")
def chat():
    return Chat(model_path("tiny-base"))


@pytest.fixture(scope="module")
def templates():
    made = Templates()
    yield made
    made.close()


@pytest.mark.parametrize("template", [*ORDINARY, None])
def test_what_is_written_is_what_transformers_writes(chat, monkeypatch, template):
    if template is not None:
        monkeypatch.setattr(chat.processor, "chat_template", template)
    messages = [USER, {"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "text", "text": "!"}]}]
    assert chat._render(messages) == chat.processor.apply_chat_template(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template, told",
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 10 ** (10 ** 10) }}", "takes"),
        ("{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "takes"),
        ("{{ 'x' * 10 ** 12 }}", "too much"),
        ("{{ 'x' * 10 ** 7 }}", "writes more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('no pictures') }}", "no pictures"),
        ("{% for %}", "Expected"),
        ("{{ messages.append(1) }}", "unsafe|safely"),
    ],
)
def test_a_template_that_would_not_end_is_ended(templates, monkeypatch, template, told):
    monkeypatch.setattr(module, "SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=told):
        templates.render(template, {"messages": [USER]})
    assert time.monotonic() - begun < 10
    assert templates.render("{{ messages[0].role }}", {"messages": [USER]}) == "user"


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['os'].system('touch MARK') }}",
        "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
        "{{ self._TemplateReference__context.environment.from_string('x') }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}{{ os.system('touch MARK') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(lipsum) }}",
        "{{ lipsum.__globals__['os'].system('touch MARK') }}",
    ],
)
def test_no_template_gets_out_of_its_sandbox(templates, tmp_path, escape):
    with pytest.raises(ValueError):
        templates.render(escape.replace("MARK", str(tmp_path / "mark")), {})
    assert not (tmp_path / "mark").exists()


def test_a_broken_template_is_told_with_the_model(chat, monkeypatch):
    monkeypatch.setattr(chat.processor, "chat_template", "{% for %}")
    with pytest.raises(ValueError, match="tiny-base: the chat template can't write a turn .*\n.*chat_template.jinja"):
        chat._render([USER])
