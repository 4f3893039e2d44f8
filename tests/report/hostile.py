"""Texts that try to be more than text, shared by the tests of the report."""

TEXTS = (
    "<script>alert('owned')</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</textarea></title></style><iframe src=//evil.example>",
    "{{ 7 * 7 }} {% raw %}",
    "![p](http://evil.example/p.png) [link](javascript:alert(1))",
    "<http://evil.example> http://evil.example www.evil.example me@evil.example mailto:me@evil.example",
    "a | b\n| c |\r\n---|---\u2028`code` ``` **bold** _it_ ~~gone~~ # head \\",
    "[red]markup[/red] [link=http://evil.example]x[/link]",
    "\x1b[31mred\x1b[0m \x00 \x07 \x9b",
    "\u202egnihton\u202c \u2066isolate\u2069 \ufeff \U000e0041",
    "مرحبا بالعالم שלום עולם",
    "你好，世界 😀 ก็็็็็",
    "$\\frac{1}{ $ \\usepackage _^ $$",
    "\ud800 lone surrogate",
    "x" * 50_000,
    "word " * 20_000,
    "",
)
