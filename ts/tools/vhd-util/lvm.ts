/** Logical volumes: which there are, and where they begin on the physical volumes below, as `vgs` and `lvs` tell. */

import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { matches } from "../cli/glob.ts";

/** A logical volume. */
export interface Volume {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** The device that its first segment is on, and where there it begins, bytes. */
  readonly device: string;
  readonly start: number;
  /** Its first segment lies there as it is. */
  readonly linear: boolean;
}

const run = promisify(execFile);
const FORMAT = ["--noheadings", "--nosuffix", "--units=b", "--unbuffered"];
const MAX_OUTPUT = 64 << 20;

/** Rows of words; undefined if the program fails, or isn't there. */
async function table(program: string, group: string, columns: string): Promise<string[][] | undefined> {
  try {
    const { stdout } = await run(program, [...FORMAT, `--options=${columns}`, "--", group], { maxBuffer: MAX_OUTPUT });
    const lines = stdout.split("\n").map((line) => line.trim());
    return lines.filter((line) => line !== "").map((line) => line.split(/\s+/));
  } catch {
    return undefined;
  }
}

/** All volumes of a group; undefined if that can't be told. */
export async function scanVolumeGroup(group: string): Promise<Volume[] | undefined> {
  const physical = await table("vgs", group, "vg_name,vg_extent_size,lv_count,pv_count,pv_name,pe_start");
  if (physical === undefined || physical.length === 0 || physical.some(([name]) => name !== group)) return undefined;
  const extentSize = Number(physical[0]?.[1]);
  const starts = new Map(physical.map(([, , , , name = "", start]) => [name, Number(start)]));
  const rows = await table("lvs", group, "lv_name,lv_size,segtype,seg_count,seg_start,seg_size,devices");
  if (rows === undefined) return undefined;
  const volumes: Volume[] = [];
  for (const [name = "", size, type, , segmentStart, , devices = ""] of rows) {
    if (Number(segmentStart) !== 0) continue;
    const [, device = "", extent] = /^([^(]+)\((\d+)\)/.exec(devices) ?? [];
    const offset = starts.get(device);
    const start = Number(extent) * extentSize + (offset ?? Number.NaN);
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(Number(size))) return undefined;
    volumes.push({ name, size: Number(size), device, start, linear: type === "linear" });
  }
  return volumes;
}

/** The volumes that fit any of the patterns: those of the first pattern first. */
export function findVolumes(volumes: readonly Volume[], patterns: readonly string[]): Volume[] {
  const found = new Set<Volume>();
  for (const pattern of patterns) {
    for (const volume of volumes) if (matches(pattern, volume.name)) found.add(volume);
  }
  return [...found];
}

/**
 * The name of the volume that a path of the device mapper stands for: `/dev/mapper/VG-LV`, in which dashes of names are
 * doubled. Undefined for a path of another form.
 */
export function volumeNameOf(path: string): string | undefined {
  // A zero byte can't be in a path.
  const name = path.slice(path.lastIndexOf("/") + 1).replaceAll("--", "\0");
  const border = name.lastIndexOf("-");
  return border < 0 ? undefined : name.slice(border + 1).replaceAll("\0", "-");
}
