import { Option } from "commander";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import * as z from "zod";
import { JobError } from "../../engine/engine.ts";
import { integer } from "./arguments.ts";
import { errnoValue, explain, ToolError } from "./failure.ts";
import { createTool, ordinaryStatuses, report, type ToolCommand } from "./program.ts";
import { bashCompletion } from "./reference/completion.ts";
import { manualPage } from "./reference/man.ts";
import { fromCommander } from "./reference/model.ts";

let said: string;
beforeEach(() => {
  said = "";
  const take = (text: string | Uint8Array) => {
    said += text;
    return true;
  };
  vi.spyOn(process.stderr, "write").mockImplementation(take);
  vi.spyOn(process.stdout, "write").mockImplementation(take);
});
afterEach(() => {
  vi.restoreAllMocks();
});

function tool(): ToolCommand {
  const command = createTool("vhd-test", "Tests .'things'.", {
    details: [".first\\line", "'second"],
    examples: [{ text: "Do it", command: "vhd-test --level 3 a.vhd" }],
    exitStatus: [["0", "it is done"]],
    seeAlso: ["tapdisk"],
  });
  return command
    .argument("<file>", "image")
    .option("-l, --level <N>", "how much", "1")
    .addOption(new Option("--how <way>", "in which way").choices(["fast", "slow"]))
    .action((file: unknown) => {
      const given = command.parseArguments(z.object({ file: z.string(), level: integer(0, 9) }), { file });
      if (given.file === "broken") throw new ToolError("it is broken", 7);
      throw new Error(`${given.file} at ${given.level}`);
    });
}

/** The status with which the program would end. */
async function statusOf(...args: string[]): Promise<number> {
  try {
    await tool().parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    return report("vhd-test", error, ordinaryStatuses);
  }
}

describe("a command", () => {
  it("has help with examples and a version", async () => {
    expect(await statusOf("--help")).toBe(0);
    expect(said).toMatch(/Examples:\n {2}# Do it\n {2}vhd-test --level 3 a.vhd\n/);
    expect(said).toMatch(/Exit status:\n {2}0 +it is done\n/);
    said = "";
    expect(await statusOf("--version")).toBe(0);
    expect(said).toMatch(/^vhd-test \(tapvhd\) \d+\.\d+\.\d+\n$/);
  });

  it("says what is wrong with its command line", async () => {
    expect(await statusOf()).toBe(2);
    expect(said).toMatch(/^vhd-test: missing required argument 'file'\n/);
    said = "";
    expect(await statusOf("a.vhd", "-l", "x")).toBe(2);
    expect(said).toMatch(/^vhd-test: --level: expected a whole number from 0 to 9\n/);
    said = "";
    expect(await statusOf("a.vhd", "--how", "well")).toBe(2);
    expect(said).toMatch(/fast, slow/);
  });

  it("ends with the status that fits what went wrong", async () => {
    expect(await statusOf("a.vhd")).toBe(1);
    expect(said).toBe("vhd-test: a.vhd at 1\n");
    expect(await statusOf("broken")).toBe(7);
  });

  it("tells the cause where that tells more", () => {
    const failure = new JobError({ message: "a.vhd: file: can't be opened (errno 16)", errno: 16 });
    failure.cause = new Error("a.vhd is in use by tapdisk, process 1");
    expect(explain(failure)).toBe("a.vhd: file: can't be opened (errno 16): a.vhd is in use by tapdisk, process 1");
    expect(errnoValue(failure)).toBe(16);
    expect(errnoValue(Object.assign(new Error("x"), { code: "ENOENT" }))).toBe(2);
    expect(errnoValue("x")).toBe(5);
  });
});

describe("the reference of a command", () => {
  it("has all that its manual and its options say", () => {
    const page = manualPage(fromCommander(tool()));
    expect(page).toContain('.TH "VHD\\-TEST" 1');
    expect(page).toContain("\n\\&.first\\eline\n.PP\n\\&'second\n");
    expect(page).toContain("\\fB\\-l\\fR, \\fB\\-\\-level\\fR \\fIN\\fR\nhow much\n");
    expect(page).toContain("vhd\\-test \\-\\-level 3 a.vhd");
  });

  it("completes choices and files", () => {
    const script = bashCompletion(fromCommander(tool()));
    expect(script).toContain("' --how') COMPREPLY=($(compgen -W 'fast slow'");
    expect(script).toContain("'') compopt -o default ;;");
  });
});
