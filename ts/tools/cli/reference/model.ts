/**
 * What manual pages and completions are generated from: a command as data. Commander's commands describe themselves
 * (`fromCommander`); a command with a parser of its own writes this down.
 */

import type { Argument, Option } from "commander";
import { type Manual, ToolCommand } from "../program.ts";

/** What can stand for a value, for completions. */
export type ValueKind = "file" | "text" | readonly string[];

/** A value that an option or argument takes. */
export interface Value {
  /** As help names it, without brackets. */
  readonly name: string;
  readonly kind: ValueKind;
}

/** An option. */
export interface ReferenceOption {
  /** Each way to write it, dashes included. */
  readonly flags: readonly string[];
  readonly description: string;
  readonly value?: Value;
}

/** An argument that is no option. */
export interface ReferenceArgument extends Value {
  readonly description: string;
  readonly required: boolean;
  readonly variadic: boolean;
}

/** A command or subcommand. */
export interface Reference {
  readonly name: string;
  /** One sentence. */
  readonly summary: string;
  readonly manual: Manual;
  readonly options: readonly ReferenceOption[];
  readonly arguments: readonly ReferenceArgument[];
  readonly commands: readonly Reference[];
}

/** Names of values that are paths. */
const paths = new Set(["file", "files", "path", "image", "images", "child", "parent", "ancestor", "folder", "journal"]);

function kindOf(name: string, choices: readonly string[] | undefined): ValueKind {
  if (choices !== undefined) return choices;
  return paths.has(name.toLowerCase()) ? "file" : "text";
}

function optionOf(option: Option): ReferenceOption {
  const flags = [option.short, option.long].filter((flag) => flag !== undefined);
  const name = /[<[]([^>\]]+?)(?:\.\.\.)?[>\]]/.exec(option.flags)?.[1];
  const { description } = option;
  return name === undefined
    ? { flags, description }
    : { flags, description, value: { name, kind: kindOf(name, option.argChoices) } };
}

function argumentOf(argument: Argument): ReferenceArgument {
  const { description, required, variadic } = argument;
  const name = argument.name();
  return { name, kind: kindOf(name, argument.argChoices), description, required, variadic };
}

/** A command of Commander's as data. Values that are named as paths are (`file`, `image`, `child`, …) complete to files. */
export function fromCommander(command: ToolCommand): Reference {
  const help = command.createHelp();
  return {
    name: command.name(),
    summary: command.description(),
    manual: command.manual,
    options: help.visibleOptions(command).map(optionOf),
    arguments: command.registeredArguments.map(argumentOf),
    commands: command.commands.filter((sub) => sub instanceof ToolCommand).map(fromCommander),
  };
}
