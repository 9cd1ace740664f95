"""Chat templates of the published families, written anew with the same logic, answers marked; conversations for them.

`UNMARKED` takes the marks out again: that is the form in which they are published.
"""

from __future__ import annotations

import random
import re
from typing import Any

CHATML = """
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """
{%- if messages[0]['role'] == 'system' %}
{%- set turns = messages[1:] %}{% set system = messages[0]['content'] %}
{%- else %}
{%- set turns = messages %}{% set system = false %}
{%- endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if loop.index0 == 0 and system != false %}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{%- else %}
{%- set content = message['content'] %}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{%- generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}"""

LLAMA3 = """
{{- bos_token }}
{%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
{%- else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{ '\\nEnvironment: ipython\\n' }}{% endif %}
{{- 'Today Date: ' + date_string + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """
{{- bos_token }}
{%- set ns = namespace(system=none) %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' }}{% if loop.last and ns.system is not none %}{{ ns.system + '\\n\\n' }}{% endif %}
{{- message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{%- generation %}{{ ' ' + message.content|trim + eos_token }}{% endgeneration %}
{%- else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}"""

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' }}
{%- if role == 'model' %}
{%- generation %}{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endgeneration %}
{%- else %}{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PHI3 = """
{%- for message in messages %}
{%- if message['role'] == 'system' and message['content'] %}{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}
{%- generation %}{{ message['content'] + '<|end|>\\n' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

ZEPHYR = """
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\\n' }}{% endif %}
{% endfor %}"""

QWEN3 = """
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == 'user' %}{% set ns.searching = false %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}{% set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- generation %}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{ content }}{% endif %}
{{- '<|im_end|>\\n' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

DEEPSEEK = """
{%- set ns = namespace(system='') %}
{%- for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' }}{% generation %}{{ content + '<｜end▁of▁sentence｜>' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

COMMAND = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}
{%- else %}{% set system = 'You are Command.' %}{% set rest = messages %}{% endif %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system + '<|END_OF_TURN_TOKEN|>' }}
{%- for message in rest %}
{%- set content = message['content'] %}
{%- if message['role'] == 'user' %}
{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message['role'] == 'assistant' %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
{%- generation %}{{ content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

GRANITE = """
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}
{%- generation %}{{ message['content'] + '<|end_of_text|>\\n' }}{% endgeneration %}
{%- else %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}"""

TULU = """
{%- for message in messages %}
{%- if message['role'] in ('system', 'user') %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] ~ '\\n' }}
{%- else %}{{ '<|assistant|>\\n' }}
{%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{%- endfor %}"""

VICUNA = """
{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set messages = messages[1:] %}
{%- else %}{{ 'A chat between a curious user and an assistant. ' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ 'USER: ' + message['content'].strip() + ' ' }}
{%- else %}{{ 'ASSISTANT: ' }}{% generation %}{{ message['content'].strip() + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"""

TOOLS = """
{%- if tools %}{{ 'Tools: ' + tools|tojson(indent=2) }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ ' ' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ {'text': message.content, 'role': message.role} | tojson }}{{ '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content | tojson ~ '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"""

FAMILIES = {
  "chatml": CHATML, "llama 2": LLAMA2, "llama 3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "phi 3": PHI3,
  "zephyr": ZEPHYR, "qwen 3": QWEN3, "deepseek r1": DEEPSEEK, "command r": COMMAND, "granite": GRANITE, "tulu": TULU,
  "vicuna": VICUNA, "tools": TOOLS,
}  # fmt: skip

_WORDS = "hello world good bad 3 < 5 & 'é' 你好 <b> \"quoted\" user: assistant </s> 🙂 don't \\n end."


def unmarked(template: str) -> str:
  """The template without {% generation %}, spaces kept as they were."""
  return re.sub(r"\{%(-?) (?:end)?generation (-?)%\}", r"{%\1 if true \2%}{% endif %}", template)


def conversation(rng: random.Random) -> list[dict[str, Any]]:
  """One to four turns, sometimes with a system message, reasoning, odd spaces, or a user who has the last word."""
  messages: list[dict[str, Any]] = []
  if rng.random() < 0.35:
    messages.append({"role": "system", "content": _text(rng)})
  for _ in range(rng.randrange(1, 5)):
    messages.append({"role": "user", "content": _text(rng)})
    answer = _text(rng)
    if rng.random() < 0.2:
      answer = f"<think>\n{_text(rng)}\n</think>\n\n{answer}"
    messages.append({"role": "assistant", "content": answer})
    if rng.random() < 0.15:
      messages[-1] |= {"reasoning_content": _text(rng), "tool_calls": None}
  return messages if rng.random() < 0.85 else messages[:-1]


def _text(rng: random.Random) -> str:
  text = " ".join(rng.choice(_WORDS.split()) for _ in range(rng.randrange(1, 7)))
  return rng.choice(["", "", " ", "\n\n"]) + text + rng.choice(["", "", " ", "\n"])
