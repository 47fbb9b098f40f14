"""Chinese words of the page of `qianyi plan --ui`; English words are their own keys (`qianyi.plan.words`)."""

import re

from qianyi.plan.words import chinese as chinese_of_picture

_WORDS = {
    "A plan for a training run": "训练规划",
    "Model, cluster and limits in; layout, memory, time and cost out. Everything is computed on this machine.": (
        "选模型、集群和限制，得到布局、显存、时间与花费。一切都在本机计算。"
    ),
    "Model": "模型",
    "of a size of its own": "自定规模",
    "Parameters": "参数量",
    "Tokens": "词元数",
    "as the recipe": "同配方",
    "Chip": "芯片",
    "How many": "数量与形状",
    "found, with a deadline or budget": "留空：由期限或预算求出",
    "Precision of products": "矩阵乘精度",
    "Deadline": "期限",
    "Budget, $": "预算（美元）",
    "Price, $ per chip and hour": "价格（美元/芯片·小时）",
    "as known": "已知价格",
    "none": "不限",
    "Plan": "规划",
    "Cannot be done": "做不到",
    "days": "天",
    "dollars": "美元",
    "no price known": "价格未知",
    "chips": "块芯片",
    "per step": "每步",
    "MFU": "MFU",
    "tokens per second": "词元/秒",
    "of {all} GB per chip": "每块芯片，共 {all} GB",
    "of the days advance the run; {n} failures expected": "的时间有效；预计故障 {n} 次",
    "expected loss, nats per token": "预期损失（nat/词元）",
    "MWh": "兆瓦时",
    "{considered} layouts were considered, {fitting} fit, in {seconds} s.": (
        "考察了 {considered} 种布局，{fitting} 种放得下，用时 {seconds} 秒。"
    ),
    "Layout": "布局",
    "Why not another": "为什么不是别的布局",
    "step": "每步",
    "memory": "显存",
    "what it costs more": "多花在哪里",
    "chosen": "选中",
    "as fast, with more axes or more memory": "一样快，但轴更多或更费显存",
    "The plan as a recipe": "方案即配方",
    "copy": "复制",
    "copied": "已复制",
    "download": "下载",
    "the picture": "下载图片",
    "The same on the command line": "同样的命令",
    "How the numbers come about": "数字的由来",
    "The server has stopped: run `qianyi plan --ui` again.": "服务已停止：请重新运行 `qianyi plan --ui`。",
}
_ERRORS = {
    r"(\S+): nothing fits: the smallest layout needs (\S+) GB per chip, and a plan fills (\S+) of the (\S+) GB of (\S+); "
    r"about (\S+) times as many chips would do": (
        "{0}：放不下。最省的布局每块芯片也要 {1} GB，而规划最多用 {4} 的 {3} GB 中的 {2}；大约要 {5} 倍的芯片"
    ),
    r"(\S+): no layout.* divides train.batch_size=(\d+) sequences, (\d+) heads, (\d+) layers and d_model=(\d+) among (\S+) chips"
    r"; (\S+) chips would do": "{}：{} 条序列、{} 个头、{} 层、宽度 {} 分不到 {} 块芯片上；{} 块可以",
    r"(\S+): no layout.* divides train.batch_size=(\d+) sequences, (\d+) heads, (\d+) layers and d_model=(\d+) among (\S+) chips": (
        "{}：{} 条序列、{} 个头、{} 层、宽度 {} 分不到 {} 块芯片上"
    ),
    r"cluster `(\S+)`: expected .*such as (\S+?)(?:, or .*)?": "集群 `{}` 写法不对，例如 {}",
    r"cluster `(\S+)`: (\S+) is joined to a torus of (\d) dimensions; .*such as (\S+?)(?:, or .*)?": (
        "集群 `{}`：{} 连成 {} 维环面，例如 {}"
    ),
    r"cluster `(\S+)`: (\d+) chips of \S+ at most share a fast network, not (\d+); .* chips are (\S+)": (
        "集群 `{}`：至多 {} 块芯片共享高速网络，不是 {} 块；请写 {}"
    ),
    r"cluster `(\S+)`: a slice of (\S+) chips is more than a pod of (\S+); .*such as (\S+)": (
        "集群 `{}`：一个 slice 的 {} 块芯片多于一个 pod 的 {} 块；多个 slice 写作 {}"
    ),
    r"--cluster \S+: say how many, such as (\S+), or .*": "请写明数量，例如 {}；或给出期限或预算，由规划求出数量",
    r"(\S+) needs (\S+) days for (\S+) tokens, the deadline is (\S+): by then (\S+) tokens are done; or take about (\S+) times.*": (
        "{} 需要 {} 天训练 {} 词元，期限是 {} 天：届时只能完成 {} 词元；或者用大约 {} 倍的芯片"
    ),
    r"(\S+) costs (\S+) to (\S+), the budget is (\S+): it pays for (\S+) tokens.*": (
        "{} 要花 {} 至 {}，预算是 {}：按最低价只够 {} 词元"
    ),
    r"no number of (\S+) up to (\S+) fits: (.*)": "{} 用到 {} 块也放不下：{}",
    r"no number of (\S+) up to (\S+) keeps the deadline and the budget; the fastest is (\S+): (\S+) days.*": (
        "{} 用到 {} 块也守不住期限和预算；最快的是 {}：{} 天"
    ),
    r"(\S+) has no units for (\S+); choose bf16": "{} 没有 {} 单元；请选 bf16",
    r"--params (.*): expected .*": "参数量写作 `{}` 不对：应是大于 0 的数，如 175b",
    r"--tokens (.*): expected .*": "词元数写作 `{}` 不对：应是大于 0 的数，如 300b、1.5t",
    r"--budget (.*): expected .*": "预算写作 `{}` 不对：应是大于 0 的数，如 500k、2m",
    r"--budget: no price of (\S+) is known; .*": "不知道 {} 的价格，无法核对预算；请填价格",
    r"--params \S+: say --tokens too \(20 per parameter is compute-optimal: (\S+)\)": "还要词元数（每参数 20 个为算力最优：{}）",
    r"--params (\S+): no such model of this family; .*": "没有 {} 参数的这类模型；请取 50m 到 10t，或选一个配方",
    r"--deadline (\S+): the day has passed": "期限 {} 已过",
    r"--deadline (\S+): expected .*": "期限写作 `{}` 不对：应是天数（30d）、小时（12h）或日期（2027-03-01）",
    r"`(.*)` is no price; .*": "价格写作 `{}` 不对：应如 2.5 或 2-3",
}
"""Of the messages that the page's fields can lead to; a message that none fits stays in English."""


def chinese(words: str) -> str:
    return _WORDS.get(words) or chinese_of_picture(words)


def chinese_error(message: str) -> str:
    """A message of the planner, with its numbers."""
    words = " ".join(message.split())
    for pattern, template in _ERRORS.items():
        found = re.fullmatch(pattern, words)
        if found:
            # One message may hold another.
            return template.format(*(chinese_error(part).rstrip("。") for part in found.groups())) + "。"
    return message
