"""The keys of ``yolo train`` that a sweep file refuses, and where their meaning lives."""

from collections.abc import Mapping

_DETECTION = "belongs to another task, and only detectors are trained here; leave it out"
_AFTERWARDS = (
    "is a setting of 'yolo predict', 'yolo val', 'yolo track' or 'yolo export', not of a training; leave it out"
)
_VALIDATION = (
    "is fixed, so that the mAP of all trials is on one scale (Ultralytics' own values for validation); leave it out"
)
_SHOWS = "has no meaning here: what a trial did is in MLflow ('sweeper ui') and in 'sweeper report'; leave it out"
_FASTER = "is not taken: it changes the bits of a training without being part of its name; leave it out"
_WARMUP = "is a parameter of the schedule: write {value} in a baseline such as {{family: yolo_linear, {value}}}"

#: Keys of ``yolo train`` that a sweep file refuses, each with the sentence that follows it in the message.
ELSEWHERE: Mapping[str, str] = {
    # the learning rate
    "lrf": (
        "is a parameter of the schedule: write lrf: 0.01 in a baseline, {family: yolo_linear, lrf: 0.01}, "
        "or floor: 0.01 under search:"
    ),
    "cos_lr": "is a schedule of its own: write yolo_cosine under baselines:, or decay: cosine under search:",
    "warmup_epochs": (
        "is a parameter of the schedule: write warmup: 3ep under search:, or in a baseline such as "
        "{family: yolo_linear, warmup: 3ep}"
    ),
    "warmup_momentum": _WARMUP.format(value="warmup_momentum: 0.8"),
    "warmup_bias_lr": _WARMUP.format(value="warmup_bias_lr: 0.1"),
    # how long
    "patience": (
        "is not taken: it stops in the dip after a restart; pruner: cycle_end stops a trial where a cycle ends, "
        "dead_after: 50 one that learned nothing"
    ),
    "time": "is not taken: the length of a run is part of its schedule; write epochs",
    "resume": "is not needed: the same command goes on where it stopped",
    "close_mosaic": (
        "counts from the end, so that a longer run would begin otherwise; write mosaic_epochs, which counts from the "
        "start: mosaic_epochs: 90 for close_mosaic=10 of 100 epochs"
    ),
    # data
    "cache": "is cache_mb here: megabytes of decoded images in memory, by default a quarter of a worker's, 0 for none",
    "classes": "is not taken: the labels belong to the data set; leave the other classes out of its labels",
    # the model
    "pretrained": "is said by model: yolo11n.yaml starts untrained, yolo11n.pt from these weights",
    "cls_remap": "is always on: a class of the same name keeps its weights; leave it out",
    "distill_model": "is not taken: a trial has one model; leave it out",
    "dis": "is the weight of distillation, which is not taken; leave it out",
    "quantize": "is not taken: trainings are in float32, or with amp: true in mixed precision; leave it out",
    "compile": _FASTER,
    "channels_last": _FASTER,
    "cls_pw": "is not taken: classes weigh the same; leave it out",
    # where, and what is kept and shown
    "project": (
        "is the place of everything here, and no key: sweeper run SWEEP --store FOLDER, or the variable SWEEPER_STORE; "
        "name is the sweep's name"
    ),
    "exist_ok": "is not needed: the same sweep goes on, and a changed one needs a new name",
    "cfg": "is the sweep file itself; write its keys there",
    "mode": "is always train; leave it out",
    "task": "is always detect; leave it out",
    "save": "is weights here: all or none",
    "save_period": "is not needed: the exact state after every epoch is kept, up to store_gb",
    "val": "is not taken: every epoch is evaluated, because the sweep compares the curves; leave it out",
    "split": "is not taken: trials are compared on val; name other images under val: in the data.yaml",
    "save_json": "is objective: AP, or coco_epochs: 10 for COCO's metrics beside another objective",
    "plots": _SHOWS,
    "verbose": _SHOWS,
    "profile": _SHOWS,
    **dict.fromkeys(("conf", "iou", "max_det", "agnostic_nms", "nms"), _VALIDATION),
    **dict.fromkeys(("overlap_mask", "mask_ratio", "dropout", "pose", "kobj", "rle", "angle"), _DETECTION),
    **dict.fromkeys(("dlog", "dgrad", "dlam", "copy_paste_mode", "auto_augment", "erasing"), _DETECTION),
    **dict.fromkeys(("dnn", "source", "vid_stride", "stream_buffer", "visualize", "augment"), _AFTERWARDS),
    **dict.fromkeys(("retina_masks", "embed", "show", "save_frames", "save_txt", "save_conf"), _AFTERWARDS),
    **dict.fromkeys(("save_crop", "show_labels", "show_conf", "show_boxes", "line_width"), _AFTERWARDS),
    **dict.fromkeys(("format", "optimize", "dynamic", "simplify", "opset", "workspace", "tracker"), _AFTERWARDS),
}
