"""The prompts that serve makes of chats: python3 serve_templates.py PROGRAM MODEL WORK. They are what the templates of real models
give, whose sources are here; where jinja2 is installed, it checks the texts that are expected."""
import json
import os
import shutil
import sys

from serve_client import Server

PROGRAM, MODEL, WORK = sys.argv[1:4]
BOS, EOS = "\x02", "\x03"  # tokens of the model of bytes that the tests use
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # falcon-mamba-7b-instruct
QWEN2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
         "assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
MISTRAL3 = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""  # Mistral 7B 0.3, Codestral and Mamba-Codestral
MISTRAL1 = ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
            "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + "
            "' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
          "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if "
          "(message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/"
          "user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + "
          "system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if "
          "message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
          "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
FALCON3 = r"""{%- if tools %}
{{- '<|system|>\n' }}
{%- else %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '<|system|>\n' + message['content'] + '\n' }}
{%- elif message['role'] == 'user' %}
{{- '<|user|>\n' + message['content'] + '\n' }}
{%- elif message['role'] == 'assistant' %}
{%- if not loop.last %}
{{- '<|assistant|>\n' + message['content'] + eos_token + '\n' }}
{%- else %}
{{- '<|assistant|>\n' + message['content'] + eos_token }}
{%- endif %}
{%- endif %}
{%- if loop.last and add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}
{%- endfor %}
{%- endif %}"""  # Falcon3-Mamba-7B-Instruct
OTHERS = {
    "zephyr": ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
               "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
               "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
               "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"),
    "phi3": ("{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif "
             "message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
             "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
             "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"),
    "phi4": ("{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + "
             "'<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif "
             "%}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"),
    "mistral7": ("{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + "
                 "'[/INST]' }}{%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
                 "{%- endif %}{%- endfor %}"),
}


def chat(text):
    """S:... is a system's message, U:... a user's, A:... an assistant's."""
    names = {"S": "system", "U": "user", "A": "assistant"}
    return [{"role": names[one[0]], "content": one[2:]} for one in text.split("|")]


TURNS, SYSTEM = chat("U: Hi?\n|A: Yes. |U:Who?"), chat("S:Be brief.|U:Hi?|A:Yes.|U:Who?")
C = "<|im_start|>"
CASES = {  # None: the template refuses the chat
    "chatml": (CHATML, f"{C}user\n Hi?\n<|im_end|>\n{C}assistant\n Yes. <|im_end|>\n{C}user\nWho?<|im_end|>\n{C}assistant\n",
               f"{C}system\nBe brief.<|im_end|>\n{C}user\nHi?<|im_end|>\n{C}assistant\nYes.<|im_end|>\n{C}user\nWho?<|im_end|>\n{C}assistant\n"),
    "qwen2": (QWEN2, f"{C}system\nYou are a helpful assistant.<|im_end|>\n{C}user\n Hi?\n<|im_end|>\n{C}assistant\n Yes. <|im_end|>\n{C}user\n"
              f"Who?<|im_end|>\n{C}assistant\n",
              f"{C}system\nBe brief.<|im_end|>\n{C}user\nHi?<|im_end|>\n{C}assistant\nYes.<|im_end|>\n{C}user\nWho?<|im_end|>\n{C}assistant\n"),
    "mistral3": (MISTRAL3, f"{BOS}[INST]  Hi?\n[/INST] Yes.{EOS}[INST] Who?[/INST]",
                 f"{BOS}[INST] Hi?[/INST] Yes.{EOS}[INST] Be brief.\n\nWho?[/INST]"),
    "mistral1": (MISTRAL1, f"{BOS}[INST]  Hi?\n [/INST] Yes. {EOS} [INST] Who? [/INST]", None),
    "llama2": (LLAMA2, f"{BOS}[INST] Hi? [/INST] Yes. {EOS}{BOS}[INST] Who? [/INST]",
               f"{BOS}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Yes. {EOS}{BOS}[INST] Who? [/INST]"),
    "falcon3": (FALCON3, f"<|user|>\n Hi?\n\n<|assistant|>\n Yes. {EOS}\n<|user|>\nWho?\n<|assistant|>\n",
                f"<|system|>\nBe brief.\n<|user|>\nHi?\n<|assistant|>\nYes.{EOS}\n<|user|>\nWho?\n<|assistant|>\n"),
}
CASES["qwen25"] = (QWEN25, CASES["qwen2"][1].replace("You are a", "You are Qwen, created by Alibaba Cloud. You are a"), CASES["qwen2"][2])


def rendered(template, messages):
    """As transformers renders it; None if it raises an exception."""
    from jinja2.exceptions import TemplateError  # pylint: disable=import-outside-toplevel
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # pylint: disable=import-outside-toplevel

    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(template).render(messages=messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=True)
    except TemplateError:
        return None


def check_expected():
    try:
        import jinja2  # pylint: disable=import-outside-toplevel,unused-import
    except ImportError:
        print("jinja2 is not installed: the expected texts are not checked")
        return
    for name, (template, *expected) in CASES.items():
        for messages, text in zip((TURNS, SYSTEM), expected):
            assert rendered(template, messages) == text, (name, rendered(template, messages), text)


def model_with(name, template, **settings):
    """The model that ships, with tokens that begin and end texts, and a template."""
    folder = os.path.join(WORK, name)
    shutil.copytree(MODEL, folder)
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config |= {"bos_token_id": ord(BOS), "eos_token_id": ord(EOS)}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"chat_template": template, **settings}, file)
    return folder


def check_prompt(server, messages, prompt):
    fields = {"messages": messages, "max_tokens": 8, "temperature": 0}
    if prompt is None:
        return server.refused(400, fields, "template", "/v1/chat/completions")
    status, answer = server.post("/v1/chat/completions", fields)
    text = server.complete(prompt=list(prompt.encode()), max_tokens=8)
    assert status == 200 and answer["usage"]["prompt_tokens"] == len(prompt), (answer, prompt)
    choice, expected = answer["choices"][0], text["choices"][0]
    assert choice["message"]["content"] == expected["text"], (choice, expected)
    return answer


def check_session(server):
    """A session that gets only new messages has the answers of a chat that gets all."""
    fields, said = {"temperature": 0, "max_tokens": 10}, []
    for turn in ("Hi?", "Who?", "Why?"):
        said.append({"role": "user", "content": turn})
        _, long = server.post("/v1/chat/completions", {**fields, "messages": said})
        _, short = server.post("/v1/chat/completions", {**fields, "messages": said[-1:], "session": "s"})
        assert short["choices"] == long["choices"], (short, long)
        said.append({"role": "assistant", "content": long["choices"][0]["message"]["content"]})


def main():
    check_expected()
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    for name, (template, *expected) in CASES.items():
        folder = model_with(name, [{"name": "default", "template": template}] if name == "qwen2" else template,
                            **({"eos_token": {"content": EOS}, "bos_token": BOS} if name == "llama2" else {}))
        with Server(PROGRAM, "--model", folder) as server:
            for messages, prompt in zip((TURNS, SYSTEM), expected):
                check_prompt(server, messages, prompt)
            if name in ("chatml", "falcon3"):
                check_session(server)
            if name.startswith(("mistral", "llama")):
                check_prompt(server, chat("U:x|U:y"), None)
                check_prompt(server, chat("U:x|A:y"), None)
        print(name, flush=True)
    for name, template in OTHERS.items():
        with Server(PROGRAM, "--model", model_with(name, template)) as server:
            fields = {"messages": TURNS}
            server.refused(400, fields, os.path.join(name, "tokenizer_config.json"), "/v1/chat/completions")
        print(name, flush=True)
    for name, prompt in (("chatml", CASES["chatml"][2]), ("inst", f"[INST] Be brief.\n\nHi?[/INST] Yes.{EOS}[INST] Who?[/INST]"),
                         ("falcon", CASES["falcon3"][2])):
        with Server(PROGRAM, "--model", os.path.join(WORK, "zephyr"), "--chat-template", name) as server:
            check_prompt(server, SYSTEM, prompt)


main()
