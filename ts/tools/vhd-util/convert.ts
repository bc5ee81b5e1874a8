import { createWriteStream, fstatSync, mkdtempSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import * as z from "zod";
import { isBlockDevice, makeRawFile } from "../../host/files.ts";
import { size as sizeSchema } from "../cli/arguments.ts";
import { errnoValue, explain, ToolError, UsageError } from "../cli/failure.ts";
import { StandardInput } from "../cli/input.ts";
import { interrupted, interruptible } from "../cli/interrupt.ts";
import type { Jobs } from "../cli/jobs.ts";
import { writeOut } from "../cli/raw-output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { identity } from "./create.ts";
import { extentsOf } from "./extents.ts";
import { describeImage } from "./image.ts";
import { help } from "./options.ts";
import { fixedFooter, streamDynamic } from "./stream.ts";

const { EINVAL } = constants.errno;
const SECTOR = 512;
const STDIN = 0;
const MAX_SIZE = 2 ** 50;
const formats = ["raw", "fixed", "dynamic"] as const;
type Format = (typeof formats)[number];

/** A disk to read from. */
interface Source {
  readonly path: string;
  readonly driver: "vhd" | "aio";
  /** Bytes. */
  readonly size: number;
}

/** `vhd-util convert`. */
export const convert = suiteCommand("vhd-util", {
  name: "convert",
  summary: "Copies a disk into another format, without its zeros; - stands for standard input or output.",
  options: {
    from: {
      long: "from",
      description: "what the source is, vhd by default",
      value: { name: "format", kind: ["vhd", "raw"] },
    },
    to: {
      long: "to",
      description: "what the target shall be, dynamic by default",
      value: { name: "format", kind: formats },
    },
    size: {
      long: "size",
      description: "size of the disk, such as 20G: of a raw one that comes through a pipe",
      value: { name: "bytes", kind: "text" },
    },
    h: help,
  },
  operands: [
    {
      name: "source",
      kind: "file",
      description: "the disk, with its parents; - for standard input, which is raw unless --from says something else",
      required: true,
      variadic: false,
    },
    {
      name: "target",
      kind: "file",
      description: "a file that isn't there yet, or - for standard output",
      required: true,
      variadic: false,
    },
  ],
  manual: {
    examples: [
      { text: "A raw image of a chain", command: "vhd-util convert --to raw child.vhd disk.img" },
      { text: "Send a disk to another machine", command: "vhd-util convert child.vhd - | ssh host 'cat > disk.vhd'" },
      {
        text: "Make a VHD of what a pipe brings",
        command: "zcat disk.img.gz | vhd-util convert --from raw --size 20G - disk.vhd",
      },
    ],
  },
  async run({ options, operands }, jobs) {
    const [source, target] = operands;
    if (source === undefined || target === undefined || operands.length > 2) {
      throw new UsageError("a source and a target are needed");
    }
    const from = options.from ?? (source === "-" ? "raw" : "vhd");
    const to = formats.find((format) => format === (options.to ?? "dynamic"));
    if ((from !== "vhd" && from !== "raw") || to === undefined) throw new UsageError("there is no such format");
    const size = options.size === undefined ? undefined : sizeSchema(SECTOR, MAX_SIZE).safeParse(options.size);
    if (size?.success === false) throw new UsageError(`--size: ${size.error.issues[0]?.message}`);
    if (source === "-" && !fstatSync(STDIN).isFile()) {
      if (from === "vhd") {
        await spooled(target, (path) => fromFile(jobs, { path, driver: "vhd" }, target, to));
        return 0;
      }
      if (size === undefined) throw new UsageError("--size is needed: a pipe doesn't tell how much will come");
      if (target === "-") throw new UsageError("source and target can't be pipes both");
      await fromPipe(jobs, size.data, target, to);
      return 0;
    }
    const path = source === "-" ? "/dev/stdin" : source;
    await fromFile(jobs, { path, driver: from === "raw" ? "aio" : "vhd" }, target, to);
    return 0;
  },
});

async function fromFile(jobs: Jobs, source: Omit<Source, "size">, target: string, format: Format): Promise<void> {
  const image = await describeImage(jobs, source.path, { driver: source.driver });
  if (image.problem !== null) throw new ToolError(image.problem.message, image.problem.errno);
  const rest = source.driver === "aio" ? image.fileSize % SECTOR : 0;
  if (rest > 0) {
    const message = `raw image: its last ${rest} bytes are no whole sector, and would be lost`;
    throw new ToolError(
      `${source.path}: ${message}: found ${image.fileSize} bytes, expected a multiple of ${SECTOR}`,
      EINVAL,
    );
  }
  if (target === "-") await toPipe(jobs, { ...source, size: Number(image.size) }, format);
  else await jobs.run({ job: "convert", ...source, target, format, ...identity() }, z.null());
}

/** Keeps what a pipe brings in a file for a while, beside the target: a VHD is read from its end on. */
async function spooled(target: string, use: (path: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(target === "-" ? tmpdir() : dirname(target), ".vhd-util-"));
  try {
    const path = join(folder, "spool.vhd");
    await untilInterrupted(() => pipeline(process.stdin, createWriteStream(path)));
    await use(path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Reads standard input for `work`; a signal ends that with an error, so that nothing is left behind. */
async function untilInterrupted(work: () => Promise<void>): Promise<void> {
  try {
    await interruptible(() => process.stdin.destroy(new ToolError("interrupted")), work);
  } catch (error) {
    const status = interrupted();
    throw status === undefined ? error : new ToolError(explain(error), status);
  }
}

/** Makes the target, an empty disk. What fails leaves nothing behind. */
async function makeTarget(jobs: Jobs, path: string, format: Format, size: number): Promise<void> {
  if (format !== "raw") {
    await jobs.run({ job: "create", path, type: format, size, ...identity() }, z.null());
    return;
  }
  makeRawFile(path, size);
}

/** Makes the target and lets `fill` write it; what fails leaves nothing behind, but on a block device. */
async function making(
  jobs: Jobs,
  path: string,
  format: Format,
  size: number,
  fill: () => Promise<void>,
): Promise<void> {
  await makeTarget(jobs, path, format, size);
  try {
    await fill();
  } catch (error) {
    if (isBlockDevice(path)) {
      const status = error instanceof ToolError ? error.status : errnoValue(error);
      throw new ToolError(`${explain(error)}; what ${path} has now is incomplete`, status);
    }
    rmSync(path, { force: true });
    throw error;
  }
}

const driverOf = (format: Format) => (format === "raw" ? "aio" : "vhd");

async function toPipe(jobs: Jobs, source: Source, format: Format): Promise<void> {
  const sectors = source.size / SECTOR;
  await jobs.withDisk({ ...source, access: "read" }, async (input) => {
    if (format === "dynamic") {
      const present: { sector: number; end: number }[] = [];
      for await (const extent of extentsOf(jobs, source, sectors)) {
        if (extent.level !== null) present.push({ sector: extent.sector, end: extent.sector + extent.sectors });
      }
      let at = 0;
      // Asked for in order.
      const has = (sector: number, count: number) => {
        while ((present[at]?.end ?? Number.POSITIVE_INFINITY) <= sector) at += 1;
        return (present[at]?.sector ?? Number.POSITIVE_INFINITY) < sector + count;
      };
      await streamDynamic(jobs, input, source.size, has);
      return;
    }
    await input.read(0, sectors, writeOut);
    if (format === "fixed") writeOut(await fixedFooter(jobs, source.size));
  });
}

async function fromPipe(jobs: Jobs, size: number, path: string, format: Format): Promise<void> {
  const input = new StandardInput();
  await untilInterrupted(() =>
    making(jobs, path, format, size, () =>
      jobs.withDisk({ path, driver: driverOf(format), access: "write" }, async (output) => {
        const got = await output.write(0, Math.ceil(size / SECTOR), (bytes) => input.fill(bytes), true);
        const more = await input.fill(new Uint8Array(1));
        if (more > 0) throw new ToolError(`more than ${size} bytes came: --size is too small`, EINVAL);
        if (got < size) throw new ToolError(`only ${got} bytes came, but --size is ${size}`, EINVAL);
      }),
    ),
  );
}
