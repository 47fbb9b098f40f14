"""Words of a plan's picture and page, in English and in Chinese. English words are their own keys."""

from collections.abc import Callable

Say = Callable[[str], str]
"""Words, or a template of `str.format`, in a language."""

_CHINESE = {
    "{model} on {cluster}": "{model}，{cluster}",
    "{params} parameters": "{params} 参数",
    "{s} per step · MFU {mfu} · {tokens} tokens in {days} days": "每步 {s} · MFU {mfu} · {tokens} 词元用 {days} 天",
    "Layout: {words}": "布局：{words}",
    "Memory per chip": "每块芯片的显存",
    "{used} of {all} GB": "{used} / {all} GB",
    "free": "空闲",
    "Time of a step": "每步时间",
    "of the best, in the order of the bars": "最优布局各项，与条形同序",
    "Fastest for their memory": "显存与时间的最优前沿",
    "nothing else is both faster and smaller": "没有别的布局既更快又更省",
    "memory per chip, GB": "每块芯片显存，GB",
    "time of a step": "每步时间",
    "Pipeline": "流水线",
    "{stages} stages, {microbatches} microbatches; bubble {bubble} of the step": (
        "{stages} 个流水段，{microbatches} 个微批次；气泡占每步 {bubble}"
    ),
    "{stages} stages of {chunks} chunks, {microbatches} microbatches; bubble {bubble} of the step": (
        "{stages} 个流水段，每段 {chunks} 个模型块，{microbatches} 个微批次；气泡占每步 {bubble}"
    ),
    "stage": "流水段",
    "forward": "前向",
    "forward, first to last chunk": "前向（由浅到深：第一块到最后一块）",
    "backward, with the forward part again": "反向（含重算前向）",
    "backward, with the forward part again, first to last chunk": "反向（含重算前向，由浅到深）",
    "idle": "空闲",
    "time": "时间",
    "the same again": "如此重复",
    "weights": "权重",
    "weights in use": "使用中的权重",
    "gradients": "梯度",
    "new gradients": "新梯度",
    "optimizer": "优化器",
    "activations": "激活",
    "working set": "工作区",
    "logits": "logits",
    "runtime": "运行时",
    "products": "矩阵乘",
    "attention": "注意力",
    "elementwise": "逐元素",
    "head": "输出层",
    "tensor": "张量并行通信",
    "context": "序列并行通信",
    "experts": "专家通信",
    "stages": "流水段通信",
    "bubble": "气泡",
    "overhead": "固定开销",
    "jitter": "抖动",
    "one device": "单个设备",
}


def english(words: str) -> str:
    return words


def chinese(words: str) -> str:
    return _CHINESE.get(words, words)
