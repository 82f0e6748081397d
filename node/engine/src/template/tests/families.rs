//! Templates in the manner of the published ones of each family, written for these tests.

use super::*;

fn talk() -> Vec<ChatMessage> {
    [
        ("system", " Be brief. "),
        ("user", "Hi"),
        ("assistant", "<think>\nhm\n</think>\n\nYo"),
        ("user", "Bye"),
    ]
    .map(|(role, content)| ChatMessage { role: role.to_owned(), content: content.to_owned() })
    .to_vec()
}

/// Renders with and without the opening of an answer, which must begin with the rendering without.
fn both(source: &str, messages: &[ChatMessage]) -> (String, String) {
    let template = compile(source);
    let open = template.render(messages, 1_795_444_245, true).unwrap();
    let closed = template.render(messages, 1_795_444_245, false).unwrap();
    let opening = open.strip_prefix(&closed).unwrap().to_owned();
    (closed, opening)
}

#[test]
fn llama3() {
    let source = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- raise_exception("no tools here") }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;
    let (closed, opening) = both(source, &talk()[..2]);
    assert_eq!(
        closed,
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 23 Nov 2026\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    );
    assert_eq!(opening, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

#[test]
fn qwen3() {
    let source = r#"{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;
    let (closed, opening) = both(source, &talk());
    assert_eq!(
        closed,
        "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    );
    assert_eq!(opening, "<|im_start|>assistant\n");
    // An answer after the last question keeps its thoughts.
    let (closed, _) = both(source, &talk()[1..3]);
    assert!(closed.ends_with("<think>\nhm\n</think>\n\nYo<|im_end|>\n"), "{closed}");
}

#[test]
fn gemma() {
    let source = "{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = \"\" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception(\"Conversation roles must alternate user/assistant/user/assistant/...\") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = \"model\" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception(\"Invalid content type\") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}";
    let (closed, opening) = both(source, &talk()[..2]);
    assert_eq!(closed, "<s><start_of_turn>user\n Be brief. \n\nHi<end_of_turn>\n");
    assert_eq!(opening, "<start_of_turn>model\n");
    let error = compile(source).render(&talk()[2..], 0, true).unwrap_err();
    assert!(matches!(error, TemplateError::Refused(reason) if reason.contains("must alternate")));
}

#[test]
fn apertus() {
    let source = r#"{%- macro render_typescript_type(param_spec, required_params, is_nullable=false) -%}
    {%- if param_spec.type == "array" -%}any[]{%- else -%}string{%- endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- set system_token = '<|system_start|>' -%}
{%- set end_system_token = '<|system_end|>' -%}
{%- set ns = namespace(in_assistant=false, in_tool=false, assistant_format=none) -%}
{%- if messages and messages[0].role == 'system' -%}
    {{ system_token + messages[0].content + end_system_token }}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {{ system_token + 'You are Apertus.\nKnowledge cutoff: 2024-04\nCurrent date: ' + strftime_now('%Y-%m-%d') + end_system_token }}
    {%- set loop_messages = messages -%}
{%- endif -%}
{{ '<|developer_start|>' }}
{%- if enable_thinking is defined and enable_thinking -%}{{ 'Deliberation: enabled\n' }}
{%- else -%}{{ 'Deliberation: disabled\n' }}{%- endif -%}
{%- if tools is defined and tools -%}{{ render_typescript_type(tools[0], []) }}
{%- else -%}{{ 'Tool Capabilities: disabled' }}{%- endif -%}
{{ '<|developer_end|>' }}
{%- for message in loop_messages -%}
    {%- if message.role == 'user' -%}
        {%- if ns.in_assistant -%}{{ '<|assistant_end|>' }}{%- set ns.in_assistant = false -%}{%- endif -%}
        {{ '<|user_start|>' + message.content + '<|user_end|>' }}
    {%- elif message.role == 'assistant' -%}
        {%- if not ns.in_assistant -%}{{ '<|assistant_start|>' }}{%- set ns.in_assistant = true -%}{%- endif -%}
        {%- if message.content is mapping and message.content.blocks is defined -%}
            {{ raise_exception('blocks') }}
        {%- endif -%}
        {%- generation -%}{{ message.content }}{%- endgeneration -%}
    {%- else -%}
        {{ raise_exception('Invalid role: ' + message.role) }}
    {%- endif -%}
{%- endfor -%}
{%- if ns.in_assistant -%}{{ '<|assistant_end|>' }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|assistant_start|>' }}{%- endif -%}"#;
    let (closed, opening) = both(source, &talk()[1..2]);
    assert_eq!(
        closed,
        "<s><|system_start|>You are Apertus.\nKnowledge cutoff: 2024-04\nCurrent date: 2026-11-23\
         <|system_end|><|developer_start|>Deliberation: disabled\nTool Capabilities: disabled\
         <|developer_end|><|user_start|>Hi<|user_end|>"
    );
    assert_eq!(opening, "<|assistant_start|>");
    let (closed, _) = both(source, &talk());
    assert!(closed.contains("<|assistant_start|><think>\nhm\n</think>\n\nYo<|assistant_end|>"));
}

#[test]
fn glm4() {
    let source = "[gMASK]<sop>
{%- if tools -%}<|system|>\n{{ tools | tojson(ensure_ascii=False) }}{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}<|user|>\n{{ visible_text(m.content) }}
{%- elif m.role == 'assistant' -%}<|assistant|>\n{{ m.content.split('</think>') | last | trim }}
{%- elif m.role == 'system' -%}<|system|>\n{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{{- '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}{%- endif -%}";
    let (closed, opening) = both(source, &talk());
    assert_eq!(
        closed,
        "[gMASK]<sop><|system|>\n Be brief. <|user|>\nHi<|assistant|>\nYo<|user|>\nBye"
    );
    assert_eq!(opening, "<|assistant|>");
}

#[test]
fn olmo2() {
    let source = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}\
{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}\
{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}\
{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}\
{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}\
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}";
    let (closed, opening) = both(source, &talk()[1..]);
    assert_eq!(
        closed,
        "<s><|user|>\nHi\n<|assistant|>\n<think>\nhm\n</think>\n\nYo</s>\n<|user|>\nBye\n"
    );
    assert_eq!(opening, "<|assistant|>\n");
}
