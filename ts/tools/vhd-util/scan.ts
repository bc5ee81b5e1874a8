import { realpathSync, statSync } from "node:fs";
import { constants } from "node:os";
import { basename } from "node:path";
import { errnoOf } from "../../tapdisk/errors.ts";
import { errnoValue, explain, UsageError } from "../cli/failure.ts";
import { glob } from "../cli/glob.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print, printJson, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { describeImage, type ImageDescription } from "./image.ts";
import { findVolumes, scanVolumeGroup, type Volume, volumeNameOf } from "./lvm.ts";
import { flag, help, json, valued } from "./options.ts";

const { EINVAL, EIO, ENOENT } = constants.errno;
const INDENT = 3;
/** A device that is smaller can't hold an image. */
const MIN_VOLUME = 4096;

/** What is scanned: a file, or a logical volume by the device that it begins on. */
interface Target {
  readonly name: string;
  readonly device: string;
  readonly start: number;
  readonly size: number;
  /** A raw parent: there is nothing to read in it. */
  readonly raw: boolean;
  readonly volume: boolean;
}

/** What was found out about a target. */
interface Found {
  readonly name: string;
  readonly capacity: bigint;
  readonly size: number;
  readonly hidden: number;
  readonly marker: number;
  readonly keyHash: string;
  readonly parent: string | undefined;
  readonly parentIsRaw: boolean;
}

interface Failed {
  readonly name: string;
  readonly errno: number;
  readonly message: string;
}

type Result = Found | Failed;

/** How to scan and print. */
interface Style {
  readonly fast: boolean;
  readonly goOn: boolean;
  readonly pretty: boolean;
  readonly parents: boolean;
  readonly verbose: boolean;
  readonly markers: boolean;
  readonly json: boolean;
}

/** `vhd-util scan`. */
export const scan = suiteCommand("vhd-util", {
  name: "scan",
  summary: "Lists images, a line for each.",
  usage:
    "usage: [OPTIONS] FILES\noptions: [-m match filter] [-f fast] [-c continue on failure] [-l LVM volume] " +
    "[-p pretty print] [-a scan parents] [-v verbose] [-h help] [-M show markers]",
  options: {
    filter: valued("m", "pattern", "files whose names fit this pattern, or logical volumes"),
    fast: flag(
      "f",
      "read as little as possible; images that have no copy of their footer at the start can't be read so",
    ),
    goOn: flag("c", "go on after an image that can't be read"),
    group: valued("l", "VG", "scan logical volumes of this volume group"),
    pretty: flag("p", "children indented below their parents"),
    parents: flag("a", "scan parents too, wherever they are"),
    verbose: flag("v", "whole paths"),
    markers: flag("M", "markers and key hashes too"),
    json,
    h: help,
  },
  operands: [{ name: "file", kind: "file", description: "images", required: false, variadic: true }],
  manual: {
    details: [
      "Volumes of a group need not be active: they are read from the physical volume that they begin on, which lvs and vgs tell.",
    ],
    examples: [
      { text: "All images of a folder, as a forest", command: "vhd-util scan -p -m '/srv/*.vhd'" },
      {
        text: "Those of a volume group, with their parents",
        command: "vhd-util scan -f -c -a -l VG_XenStorage -m 'VHD-*'",
      },
    ],
  },
  async run({ options, operands }, jobs) {
    if (options.filter === undefined && operands.length === 0) throw new UsageError("no files are named");
    const pretty = options.pretty === true;
    const style: Style = {
      fast: options.fast === true && !pretty,
      goOn: options.goOn === true,
      pretty,
      parents: options.parents === true,
      verbose: options.verbose === true,
      markers: options.markers === true,
      json: options.json === true,
    };
    const scanner = new Scanner(jobs, style);
    let found: readonly Target[] | number;
    if (options.group === undefined) {
      found = scanner.files(options.filter, operands);
    } else {
      found = await scanner.volumes(options.group, options.filter, operands);
    }
    if (typeof found === "number") {
      say(`scan failed: -${found}. Check syslog for details`);
      return found;
    }
    const status = await scanner.scan(found);
    return style.goOn ? 0 : status;
  },
});

class Scanner {
  readonly #jobs: Jobs;
  readonly #style: Style;
  readonly #kept: Found[] = [];
  #group: readonly Volume[] = [];

  constructor(jobs: Jobs, style: Style) {
    this.#jobs = jobs;
    this.#style = style;
  }

  /** The files that fit the pattern, and those that are named. An errno value if not all could be found. */
  files(filter: string | undefined, names: readonly string[]): Target[] | number {
    const { paths, failures } = filter === undefined ? { paths: [], failures: [] } : glob(filter);
    const [failure] = failures;
    if (filter !== undefined && failure !== undefined) {
      // The original has the sign of this one wrong.
      this.#show({ name: failure.path, errno: -failure.errno, message: "failure scanning target" });
      this.#fail(filter, EIO, "failure scanning target");
      return EIO;
    }
    const targets: Target[] = [];
    for (const path of [...paths, ...names]) {
      const target = fileTarget(path, false);
      if (typeof target !== "number") {
        targets.push(target);
      } else {
        this.#fail(path, target, "failure scanning target");
        if (!this.#style.goOn) return target;
      }
    }
    return targets;
  }

  /** The logical volumes that fit. An errno value if they can't be found. */
  async volumes(group: string, filter: string | undefined, names: readonly string[]): Promise<Target[] | number> {
    const volumes = await scanVolumeGroup(group);
    if (volumes === undefined) {
      say(`lvm_scan_vg failed -${EINVAL}`);
      return EINVAL;
    }
    this.#group = volumes;
    const targets: Target[] = [];
    for (const volume of findVolumes(volumes, [...(filter === undefined ? [] : [filter]), ...names])) {
      const target = volumeTarget(volume, false);
      if (typeof target !== "number") {
        targets.push(target);
      } else {
        this.#fail(volume.name, target, "failure scanning target");
        if (!this.#style.goOn) return target;
      }
    }
    return targets;
  }

  /** Scans targets, and their parents if that is wanted. Yields the first failure's errno value, 0 without one. */
  async scan(first: readonly Target[]): Promise<number> {
    const targets = [...first];
    let status = 0;
    for (let index = 0; index < targets.length; index++) {
      const target = targets[index] as Target;
      const result = await this.#examine(target);
      if ("errno" in result) {
        this.#show(result);
        status ||= result.errno;
        if (!this.#style.goOn) break;
        continue;
      }
      if (this.#style.pretty) this.#keep(result);
      else this.#show(result);
      if (this.#style.parents && result.parent !== undefined) this.#addParent(targets, target, result);
    }
    if (this.#style.pretty)
      for (const { image, depth, missing } of forest(this.#kept)) this.#show(image, depth, missing);
    return status;
  }

  async #examine(target: Target): Promise<Result> {
    const failed = (errno: number, message: string): Failed => ({ name, errno, message });
    let { name } = target;
    if (target.volume && target.size < MIN_VOLUME) return failed(EINVAL, "device too small");
    if (this.#style.pretty && !target.volume) {
      try {
        name = realpathSync(target.name);
      } catch (error) {
        return failed(errnoOf(error), "resolving name");
      }
    }
    if (target.raw) {
      const size = BigInt(target.size);
      return { ...nothing, name, capacity: size, size: target.size, hidden: 1 };
    }
    const opening = target.volume ? "opening device" : "opening file";
    let image: ImageDescription;
    try {
      const how = target.volume
        ? { fast: true, start: target.start }
        : { fast: this.#style.fast, parent: !this.#style.fast };
      image = await describeImage(this.#jobs, target.device, how);
    } catch (error) {
      say(`vhd-util scan: ${explain(error)}`);
      return failed(errnoValue(error), opening);
    }
    if (image.problem !== null) {
      say(`vhd-util scan: ${image.problem.message}`);
      const part = image.problem.structure === "footer" ? "invalid footer" : "reading header";
      return failed(image.problem.errno, target.volume ? part : opening);
    }
    let parent: string | undefined;
    if (image.type === "differencing") {
      const named = parentOf(image, target, this.#style.fast);
      if (named === undefined) return failed(EINVAL, "getting parent");
      parent = named;
    }
    return {
      name,
      capacity: image.size,
      size: target.size,
      hidden: image.footer?.hidden ?? 0,
      marker: image.batmap?.marker ?? 0,
      keyHash: image.batmap?.keyHash?.[1] ?? "",
      parent,
      parentIsRaw: /^[0-]*$/.test(image.header?.parentUuid ?? ""),
    };
  }

  #addParent(targets: Target[], child: Target, { name, parent = "", parentIsRaw }: Found): void {
    if (child.volume) {
      if (targets.some((target) => target.name === parent)) return;
      const volume = this.#group.find((one) => one.name === parent);
      const target = volume === undefined ? ENOENT : volumeTarget(volume, parentIsRaw);
      if (typeof target === "number") this.#fail(parent, target, "failure scanning target");
      else targets.push(target);
      return;
    }
    if (targets.some((target) => basename(target.name) === basename(parent))) return;
    // A name without a folder, as the header has it, is one beside its child.
    const path = parent.includes("/") ? parent : `${name.slice(0, name.lastIndexOf("/") + 1)}${parent}`;
    const target = fileTarget(path, parentIsRaw);
    if (typeof target === "number") this.#fail(parent, target, "failure scanning target");
    else targets.push(target);
  }

  #keep(image: Found): void {
    if (!this.#kept.some(({ name }) => name === image.name)) this.#kept.push(image);
  }

  #fail(name: string, errno: number, message: string): void {
    this.#show({ name, errno, message });
  }

  #show(result: Result, depth = 0, missing = false): void {
    const { verbose, markers } = this.#style;
    if (this.#style.json) {
      const { name } = result;
      if ("errno" in result) {
        printJson({ name, errno: result.errno, message: result.message });
      } else {
        const { capacity, size, hidden, marker, keyHash, parent = null } = result;
        printJson({ name, capacity: Number(capacity), size, hidden, marker, keyHash, parent, depth });
      }
      return;
    }
    const pad = " ".repeat(depth * INDENT);
    if ("errno" in result) {
      print(`vhd=${result.name} scan-error=${-result.errno} error-message='${result.message}'`);
      return;
    }
    const short = (path: string) => (verbose ? path : basename(path));
    const parent = result.parent === undefined ? "none" : short(result.parent);
    const extra = markers ? `marker=${result.marker} keyhash=${result.keyHash} ` : "";
    print(
      `${pad}vhd=${short(result.name)} capacity=${result.capacity} size=${result.size} hidden=${result.hidden} ` +
        `${extra}parent=${parent}${missing ? " (not found in scan)" : ""}`,
    );
  }
}

const nothing = { capacity: 0n, size: 0, hidden: 0, marker: 0, keyHash: "", parent: undefined, parentIsRaw: false };

function fileTarget(path: string, raw: boolean): Target | number {
  try {
    return { name: path, device: path, start: 0, size: statSync(path).size, raw, volume: false };
  } catch (error) {
    return errnoOf(error);
  }
}

function volumeTarget({ name, device, start, size, linear }: Volume, raw: boolean): Target | number {
  return linear ? { name, device, start, size, raw, volume: true } : constants.errno.ENOSYS;
}

/** The locator that speaks for the parent: the first for a Mac, else the last relative one for Windows, else any. */
function spokesman({ locators }: ImageDescription): string | undefined {
  const of = (platform: string) => locators.filter((locator) => locator.platform === platform);
  return (of("MacX")[0] ?? of("W2ru").at(-1) ?? locators[0])?.name ?? undefined;
}

function parentOf(image: ImageDescription, target: Target, fast: boolean): string | undefined {
  const inHeader = image.header?.parentName || undefined;
  if (target.volume) {
    const name = (fast ? inHeader : undefined) ?? spokesman(image);
    return name === undefined ? undefined : volumeNameOf(name);
  }
  return (fast ? inHeader : (image.parent ?? undefined)) ?? spokesman(image);
}

/** Images in the order of a forest: hidden roots before the others, and their children behind each, hidden ones last. */
function forest(images: readonly Found[]): { image: Found; depth: number; missing: boolean }[] {
  const sorted = images.toSorted((one, other) => Buffer.compare(Buffer.from(one.name), Buffer.from(other.name)));
  const byName = new Map(sorted.map((image) => [image.name, image]));
  const left = new Set(sorted);
  const lines: { image: Found; depth: number; missing: boolean }[] = [];
  const hasParent = ({ parent }: Found) => parent !== undefined && byName.has(parent);
  const visit = (image: Found, depth: number): void => {
    if (!left.delete(image)) return;
    lines.push({ image, depth, missing: image.parent !== undefined && !hasParent(image) });
    const children = sorted.filter(({ parent }) => parent === image.name);
    for (const child of children) if (child.hidden === 0) visit(child, depth + 1);
    for (const child of children) if (child.hidden !== 0) visit(child, depth + 1);
  };
  for (const image of sorted) if (!hasParent(image) && image.hidden !== 0) visit(image, 0);
  for (const image of sorted) if (!hasParent(image)) visit(image, 0);
  // Loops have no root.
  for (const image of sorted) visit(image, 0);
  return lines;
}
