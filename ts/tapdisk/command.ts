import { Option } from "commander";
import * as z from "zod";
import { integer, text } from "../tools/cli/arguments.ts";
import { createTool, type ToolCommand } from "../tools/cli/program.ts";
import { parseAddress, parseUnixAddress } from "./listen.ts";
import { backends } from "./port.ts";
import { serve } from "./serve.ts";
import { parseStack } from "./stack.ts";

const MIB = 1 << 20;

const serveArguments = z
  .object({
    disk: z.array(text(parseStack)),
    nbd: z.array(text(parseAddress)),
    ring: z.array(text(parseUnixAddress)),
    readOnly: z.boolean(),
    direct: z.boolean(),
    io: z.enum(backends),
    bitmapCache: integer(1, 2047),
    pollUs: integer(0, 1_000_000),
  })
  .superRefine(({ disk, nbd, ring }, context) => {
    for (const [name, addresses] of Object.entries({ nbd, ring })) {
      if (addresses.length > 0 && addresses.length !== disk.length) {
        const message = `expected as many addresses as disks (${disk.length}), or none`;
        context.addIssue({ code: "custom", path: [name], message });
      }
    }
  })
  .transform((given) =>
    given.disk.map((stack, index) => ({
      nbd: given.nbd[index],
      ring: given.ring[index],
      disk: {
        stack,
        readOnly: given.readOnly,
        direct: given.direct,
        backend: given.io,
        bitmapCacheBytes: given.bitmapCache * MIB,
        pollMicroseconds: given.pollUs,
      },
    })),
  );

/** An option that may be given once for each disk. */
function repeated(flags: string, description: string): Option {
  return new Option(flags, description)
    .default([], "none")
    .argParser((value: string, previous: readonly string[]) => [...previous, value]);
}

/** The command line of `tapdisk`. */
export function tapdiskCommand(): ToolCommand {
  const program = createTool("tapdisk", "Serves virtual disks.", {
    examples: [
      { text: "Serve a disk on a Unix socket", command: "tapdisk serve vhd:disk.vhd --nbd unix:/run/disk.sock" },
      {
        text: "Serve two disks from one process",
        command: "tapdisk serve vhd:a.vhd vhd:b.vhd --nbd unix:/run/a.sock --nbd unix:/run/b.sock",
      },
      { text: "Serve a raw image for reading only", command: "tapdisk serve aio:disk.img --read-only" },
    ],
    exitStatus: [
      ["0", "the disk was served and closed"],
      ["1", "something failed, or not everything could be made durable"],
      ["2", "the command line is wrong"],
    ],
    seeAlso: [],
  });
  const command = program
    .command("serve")
    .description("Serves disks in the foreground until SIGTERM or SIGINT; prints where, as URIs, when they are ready.")
    .argument(
      "<disk...>",
      "driver and file: vhd:/path, or aio:/path for a raw image; each is served by a thread of its own",
    )
    .addOption(
      repeated(
        "--nbd <address>",
        "serve NBD on unix:/path or tcp:host:port; once for each disk, in their order",
      ).default([], "a Unix socket in a new folder"),
    )
    .addOption(
      repeated("--ring <address>", "serve clients that bring a shared ring, on unix:/path; once for each disk"),
    )
    .option("--read-only", "serve the disk for reading", false)
    .option("--direct", "go around the page cache", false)
    .addOption(new Option("--io <how>", "what executes file operations").choices(backends).default("auto"))
    .option("--bitmap-cache <MiB>", "memory for sector bitmaps", "64")
    .option("--poll-us <N>", "microseconds to look for work before sleeping at most; 0: never", "100")
    .action((disk: unknown) => serve(command.parseArguments(serveArguments, { disk })));
  return program;
}
